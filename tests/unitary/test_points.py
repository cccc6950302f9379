"""Points: drawn, the origin, and projected."""

import math

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_unitary
from tests._matrices import DTYPES, WIDE_DTYPES, eps, tangent_at, unitary

dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
def test_random_points_are_on_the_manifold_and_know_it(dtype):
    manifold = LowRankUnitary(2)
    for size in ((2, 3, 8, 8), ((2, 3, 8, 8),)):
        x = manifold.random(*size, dtype=dtype)
        assert isinstance(x, geoopt.ManifoldTensor)
        assert x.manifold is manifold
        assert x.shape == (2, 3, 8, 8)
        assert x.dtype == dtype
        assert_unitary(x)


def test_random_points_follow_the_default_dtype_and_the_seed():
    manifold = LowRankUnitary()
    torch.manual_seed(3)
    first = manifold.random(4, 4)
    torch.manual_seed(3)
    assert_bit_equal(manifold.random(4, 4), first)
    assert first.dtype == torch.get_default_dtype()
    assert manifold.random(4, 4, device="meta").is_meta


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_random_points_are_haar_distributed(dtype):
    # E|tr x|² = 1, E|x₁₁|² = 1/n and every mean zero, unlike plain QR; tests of the law itself
    # are with linalg.haar.
    count, n = 20_000, 3
    x = LowRankUnitary().random(count, n, n, dtype=dtype)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    for sample, mean in (
        (trace.real, 0.0),
        (trace.abs() ** 2, 1.0),
        (x[:, 0, 0].abs() ** 2, 1 / n),
        (x[:, 2, 2].real, 0.0),
        (torch.linalg.det(x).real, 0.0),
    ):
        assert (sample.mean() - mean).abs() < 4 * sample.std() / math.sqrt(count)


@dtypes
def test_the_origin_is_the_identity_in_memory_of_its_own(dtype):
    manifold = LowRankUnitary(2)
    x = manifold.origin(2, 3, 4, 4, dtype=dtype, seed=7)
    assert isinstance(x, geoopt.ManifoldTensor)
    assert x.manifold is manifold
    assert x.is_contiguous()
    assert_bit_equal(x.data, torch.eye(4, dtype=dtype).expand(2, 3, 4, 4))
    x.data[0, 0] = 0
    assert_bit_equal(x.data[0, 1], torch.eye(4, dtype=dtype))
    assert manifold.origin(4, 4).dtype == torch.get_default_dtype()


@dtypes
@pytest.mark.parametrize("n", [2, 5, 64])
def test_projx_of_a_point_is_a_copy(dtype, n):
    # As the methods leave it, with the rounding of a few steps.
    manifold = LowRankUnitary()
    x = manifold.random(3, n, n, dtype=dtype).data
    for _ in range(3):
        projected = manifold.projx(x)
        assert_bit_equal(projected, x)
        assert projected.data_ptr() != x.data_ptr()
        assert projected.is_contiguous()
        x = manifold.retr(x, tangent_at(x, rank=2))


@dtypes
@pytest.mark.parametrize("ulps", [8, 1e3, 1e6])
def test_projx_takes_an_error_above_rounding_away(dtype, ulps):
    x = unitary(20, 20, dtype=dtype)
    off = x + ulps * eps(dtype) * torch.randn(20, 20, dtype=dtype)
    assert_unitary(LowRankUnitary().projx(off), ulps=8)


def test_projx_projects_the_whole_batch_if_one_of_it_is_off():
    x = unitary(3, 5, 5)
    x[1] *= 2
    assert_unitary(LowRankUnitary().projx(x))


@dtypes
def test_the_gradient_of_projx_adds_to_that_of_another_path(dtype):
    """As it does with geoopt's Stiefel, whose gradient it is for real matrices."""
    x = (2 * unitary(5, 5, dtype=dtype) + 0.1 * torch.randn(5, 5, dtype=dtype)).requires_grad_()
    target = torch.randn(5, 5, dtype=dtype)

    def gradient(manifold):
        loss = (manifold.projx(x) - target).abs().square().sum() + 1e-3 * x.abs().square().sum()
        return torch.autograd.grad(loss, x)[0]

    grad = gradient(LowRankUnitary())
    assert torch.linalg.matrix_norm(grad) > 1
    if not dtype.is_complex:
        assert_same_to_rounding(grad, gradient(geoopt.EuclideanStiefel()), ulps=500)


@dtypes
def test_the_gradient_of_projx_at_a_point_is_tangent(dtype):
    manifold = LowRankUnitary()
    x = unitary(3, 5, 5, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    (through,) = torch.autograd.grad(manifold.projx(x), x, grad)
    assert_same_to_rounding(through, manifold.proju(x.detach(), grad))


def test_projx_records_no_gradient_where_none_is_asked_for():
    manifold = LowRankUnitary()
    x = torch.randn(4, 4, requires_grad=True)
    assert manifold.projx(x).requires_grad
    assert not manifold.projx(x.detach()).requires_grad
    with torch.no_grad():
        assert not manifold.projx(x).requires_grad
    weight = geoopt.ManifoldParameter(manifold.projx(x), manifold=manifold)
    assert weight.is_leaf
    assert type(manifold.projx(weight)) is torch.Tensor
