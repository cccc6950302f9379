import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn.linalg.dense import (
    estimate_orthogonality_error,
    haar,
    orthogonality_error,
    polar_factor,
)
from tests._asserts import assert_same_to_rounding, assert_unitary, assert_within
from tests._matrices import DTYPES, WIDE_DTYPES, eps, polar_reference, unitary, wide


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_orthogonality_error_is_the_norm_of_the_gram_matrix_minus_one(dtype):
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    expected = torch.stack(
        [(m.mH @ m - torch.eye(6)).abs().square().sum().sqrt() for m in x.view(-1, 6, 6)]
    )
    assert not orthogonality_error(x).is_complex()
    assert_same_to_rounding(orthogonality_error(x), expected.view(2, 3))


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_estimate_is_within_a_factor_of_two_of_the_orthogonality_error(dtype, size):
    x = unitary(100, 32, 32, dtype=dtype) + size * torch.randn(100, 32, 32, dtype=dtype)
    ratio = estimate_orthogonality_error(x) / orthogonality_error(x)
    assert ratio.shape == (100,)
    assert ratio.min() > 0.5
    assert ratio.max() < 2


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_no_error_in_a_single_direction_escapes_the_estimate(dtype):
    z = torch.randn(4000, 24, 1, dtype=dtype)
    z = z / torch.linalg.vector_norm(z, dim=-2, keepdim=True)
    x = torch.eye(24, dtype=dtype) + 0.1 * z @ z.mH
    ratio = estimate_orthogonality_error(x) / orthogonality_error(x)
    assert ratio.min() > 0.02
    assert ratio.max() < 3


def test_the_estimate_of_the_identity_is_zero():
    assert estimate_orthogonality_error(torch.eye(9, dtype=torch.complex64)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_estimate_is_not_finite_where_the_matrix_is_not(bad):
    x = unitary(3, 5, 5)
    x[1, 2, 3] = bad
    assert estimate_orthogonality_error(x).isfinite().tolist() == [True, False, True]


def test_the_estimate_costs_a_fixed_number_of_passes():
    for n in (64, 1024):
        with FlopCounterMode(display=False) as counter:
            estimate_orthogonality_error(torch.empty(n, n, device="meta"))
        assert counter.get_total_flops() == 16 * n**2


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_polar_factor_is_that_of_the_singular_value_decomposition(dtype, batch):
    # Singular values 1 to 7: a gap to zero keeps the factor well conditioned.
    values = torch.arange(1.0, 8.0).to(wide(dtype)).diag_embed()
    x = (unitary(*batch, 7, 7, dtype=wide(dtype)) @ values @ unitary(7, 7, dtype=wide(dtype))).to(
        dtype
    )
    assert_same_to_rounding(polar_factor(x), polar_reference(x.to(wide(dtype))).to(dtype))


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_polar_factor_is_unitary_to_a_few_roundings(dtype, n):
    assert_unitary(polar_factor(torch.randn(n, n, dtype=dtype)), ulps=4)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_polar_factor_of_a_singular_matrix_is_unitary(dtype):
    x = torch.randn(5, 2, dtype=dtype) @ torch.randn(2, 5, dtype=dtype)
    assert_unitary(polar_factor(x))
    assert_unitary(polar_factor(torch.zeros(3, 3, dtype=dtype)))


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_no_unitary_matrix_is_nearer_than_the_polar_factor(dtype):
    x = torch.randn(5, 5, dtype=dtype)
    nearest = polar_factor(x)
    others = unitary(500, 5, 5, dtype=dtype)
    # The nearest orthogonal matrix may have either sign of determinant.
    others = torch.cat((others, others @ torch.tensor([-1.0, 1, 1, 1, 1], dtype=dtype).diag()))
    near = polar_reference(nearest + 0.01 * torch.randn(500, 5, 5, dtype=dtype))
    distance = torch.linalg.matrix_norm(x - torch.cat((others, near)))
    assert torch.linalg.matrix_norm(x - nearest) < distance.min()


def plain_qr(*size, dtype):
    return torch.linalg.qr(torch.randn(*size, dtype=dtype)).Q


def worst_deviation(draw, dtype):
    """The largest deviation of a moment from its value under Haar, in standard errors."""
    n, count = 3, 20_000
    x = draw(count, n, n, dtype=dtype)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (x @ x).diagonal(dim1=-2, dim2=-1).sum(-1)
    corner, fourth, squared = x[:, 0, 0], 3 / (n * (n + 2)), 1.0
    if dtype.is_complex:
        fourth, squared = 2 / (n * (n + 1)), 0.0
    moments = {  # name: sample, expectation
        "entry": (corner.real, 0.0),
        "diagonal entry": (x[:, 2, 2].real, 0.0),
        "entry squared": (corner.abs() ** 2, 1 / n),
        "entry to the fourth": (corner.abs() ** 4, fourth),
        "trace": (trace.real, 0.0),
        "trace squared": (trace.abs() ** 2, 1.0),
        "determinant": (torch.linalg.det(x).real, 0.0),
        "trace of the square": (square.real, squared),
    }
    return max(
        float((sample.mean() - mean).abs() / (sample.std() / math.sqrt(count)))
        for sample, mean in moments.values()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_haar_has_the_moments_of_the_haar_measure(dtype):
    assert worst_deviation(haar, dtype) < 4


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_moments_tell_plain_qr_from_haar(dtype):
    assert worst_deviation(plain_qr, dtype) > 40


def test_haar_spreads_the_eigenvalues_of_unitary_matrices_evenly():
    # Of n = 1 ... the only eigenvalue is the matrix: uniform on the circle.
    phases = haar(20_000, 1, 1, dtype=torch.complex128).flatten().angle()
    sorted_phases = ((phases + math.pi) / (2 * math.pi)).sort().values
    steps = torch.arange(1, 20_001) / 20_000
    kolmogorov_smirnov = (sorted_phases - steps).abs().max() * math.sqrt(20_000)
    assert kolmogorov_smirnov < 1.95  # exceeded with probability 0.001


@pytest.mark.parametrize("dtype", DTYPES)
def test_haar_is_unitary(dtype):
    x = haar(2, 3, 16, 16, dtype=dtype)
    assert x.dtype == dtype
    assert_unitary(x)


def test_haar_turns_the_columns_by_the_phases_of_r():
    # The Q of the decomposition with a positive diagonal is unique.
    torch.manual_seed(5)
    a = torch.randn(4, 4, dtype=torch.complex128)
    torch.manual_seed(5)
    q = haar(4, 4, dtype=torch.complex128)
    r = q.mH @ a
    assert_within(r.tril(-1), 0, 20 * eps(torch.complex128))
    assert_within(r.diagonal().imag, 0, 20 * eps(torch.complex128))
    assert (r.diagonal().real > 0).all()
