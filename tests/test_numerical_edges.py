"""Long generators, matrices of bad condition, numbers of any sign."""

import math

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.drift import sweep_columns_
from geoopt_projunn.linalg.dense import length_of
from geoopt_projunn.linalg.hashing import bits_of
from geoopt_projunn.linalg.logarithm import unitary_log
from geoopt_projunn.linalg.rows import Products
from geoopt_projunn.normalization import normalized
from geoopt_projunn.retractions import long_exponential, polar
from tests.optim._helpers import (
    assert_within,
    exp_skewh,
)


@pytest.mark.parametrize("length", [100.0, 169.0, 171.0, 255.0, 339.0, 341.0, 600.0])
def test_the_exponential_of_any_length(length):
    a = torch.randn(1, 6, 6, dtype=torch.float64)
    s = a - a.mT
    s = s * (length / torch.linalg.matrix_norm(s))
    p = long_exponential(s) + torch.eye(6, dtype=torch.float64)
    assert_within(p, exp_skewh(s), 1e-10)


def test_the_exponential_of_what_is_not_finite_is_not():
    x = LowRankUnitary(k=None).random(4, 4)
    assert not LowRankUnitary(k=None).expmap(x, torch.full_like(x, torch.inf)).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_bits_are_those_of_any_signs(dtype):
    u = torch.randn(3, 6, 6, dtype=dtype)
    signs = torch.randn(3, 6, 6).sign()
    real = torch.view_as_real(u) if u.is_complex() else u
    flipped = real * (signs[..., None] if u.is_complex() else signs)
    flipped = torch.view_as_complex(flipped) if u.is_complex() else flipped
    assert torch.equal(bits_of(u), bits_of(-u))
    assert torch.equal(bits_of(u), bits_of(flipped))


def test_bits_of_what_is_negated_lazily():
    u = torch.randn(3, 6, 6, dtype=torch.complex64).conj().imag
    assert u.is_neg()
    assert torch.equal(bits_of(u), bits_of(u.resolve_neg()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_the_gradient_of_minus_a_loss_is_its_negative(dtype):
    manifold = LowRankUnitary(k=1)
    x = manifold.random(6, 6, dtype=dtype)
    u = torch.randn(6, 6, dtype=dtype)
    assert_within(manifold.egrad2rgrad(x, -u), -manifold.egrad2rgrad(x, u), 1e-5)


@pytest.mark.parametrize(("error", "mends"), [(0.05, True), (0.2, False)])
def test_how_far_off_columns_are_mended(error, mends):
    x = (
        LowRankUnitary(k=None)
        .random(1, 6, 6, dtype=torch.float64)
        .as_subclass(torch.Tensor)
        .clone()
    )
    x[..., 0] *= (1 + error) ** 0.5  # xᴴx - I is `error` in one entry
    before = x.clone()
    sweep_columns_(x, 1, torch.zeros(1, dtype=torch.int64), torch.tensor([True]))
    assert torch.equal(x, before) != mends


@pytest.mark.parametrize("length", [2.5, torch.tensor(2.5)])
def test_one_eigenvalue_of_a_complex_generator_may_have_all(length):
    core = torch.zeros(1, 2, 2, dtype=torch.complex128)
    core[0, 0, 0] = 1j
    turned = torch.linalg.eigvalsh(-1j * normalized(core, length, "angle", 8)).abs().max().item()
    assert turned == pytest.approx(math.pi, rel=2e-3)


@pytest.mark.parametrize("r", [4, 16, 64, 256])
def test_a_long_step_stops_just_below_half_a_turn(r):
    j = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    core = torch.block_diag(*[j] * (r // 2))[None]
    turned = torch.linalg.matrix_norm(normalized(core, 100.0, "angle", r), ord=2).item()
    assert math.pi * r ** -(2**-9) * (1 - 1e-9) <= turned <= math.pi * (1 + 1e-9)


def test_polar_of_a_matrix_of_bad_condition():
    u, _, vh = torch.linalg.svd(torch.randn(6, 6, dtype=torch.float64))
    y = (u * torch.logspace(0, -15, 6, dtype=torch.float64)) @ vh
    eye = torch.eye(6, dtype=torch.float64)
    p = polar((y - eye)[None])[0] + eye
    assert_within(p.mT @ p, eye, 1e-13)


def test_the_length_of_large_entries():
    assert length_of(torch.full((1, 4, 4), 3e38)).isfinite().all()


def test_columns_of_a_conjugated_view_are_set():
    base = torch.randn(2, 4, 4, dtype=torch.complex64)
    x, rows = base.conj(), torch.randn(2, 1, 4, dtype=torch.complex64)
    index = torch.tensor([[1], [2]])
    Products().set_columns_(x, index, rows)
    assert_within(Products().columns_at(x.resolve_conj(), index), rows, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_squares_of_columns_do_not_overflow(dtype):
    assert (
        Products().squared_column_norms(torch.full((1, 4, 4), 1e30, dtype=dtype)).isfinite().all()
    )


def test_three_eigenvalues_minus_one():
    y = torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    log = unitary_log(y)
    assert torch.linalg.matrix_norm(log).item() == pytest.approx(math.pi * 2**0.5)


def test_the_projection_of_a_singular_matrix_has_a_derivative():
    x = torch.diag(torch.tensor([1.0, 2.0, 0.0])).requires_grad_()
    (grad,) = torch.autograd.grad((LowRankUnitary(None).projx(x) * torch.randn(3, 3)).sum(), x)
    assert grad.isfinite().all()
