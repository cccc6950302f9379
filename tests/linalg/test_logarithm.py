import math

import pytest
import scipy.linalg
import torch

from geoopt_projunn.linalg.logarithm import unitary_log
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests._matrices import (
    DTYPES,
    REAL_DTYPES,
    WIDE_DTYPES,
    eps,
    exponential_reference,
    skew,
    turning,
    unitary,
    wide,
)


def assert_is_log(y, ulps=50.0):
    """The logarithm is skew-Hermitian, principal, and its exponential is y."""
    log = unitary_log(y)
    assert log.dtype == y.dtype
    assert_bit_equal(log, -log.mH)
    spectrum = torch.linalg.eigvalsh(1j * log.to(torch.complex128))
    assert spectrum.abs().max() <= math.pi * (1 + ulps * eps(y.dtype))
    recovered = exponential_reference(log.to(wide(y.dtype)))
    assert_within(recovered, y, ulps * eps(y.dtype))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 5), (8, 8), (2, 3, 7, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential_undoes_the_logarithm(dtype, size):
    assert_is_log(unitary(*size, dtype=dtype))


@pytest.mark.parametrize("norm", [1e-8, 1e-3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_logarithm_undoes_the_exponential_of_a_short_generator(dtype, norm):
    omega = skew(3, 6, 6, norm=norm, dtype=dtype)
    log = unitary_log(exponential_reference(omega))
    assert_within(log, omega, 1e-13)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_logarithm_is_that_of_scipy(dtype):
    y = exponential_reference(skew(6, 6, norm=2.5, dtype=dtype))
    assert_within(unitary_log(y), torch.from_numpy(scipy.linalg.logm(y.numpy())), 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_logarithm_of_the_identity_is_zero(dtype):
    assert not unitary_log(torch.eye(5, dtype=dtype)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_eigenvalues_do_no_harm(dtype):
    y = turning([1.0, 1.0, 1.0, -1.0], 11, dtype=wide(dtype)).to(dtype)
    assert_is_log(y)
    assert_within(torch.linalg.matrix_norm(unitary_log(y)), math.sqrt(8), 50 * eps(dtype))


@pytest.mark.parametrize("n", [2, 4, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_one_in_even_dimension_is_half_a_turn_of_every_plane(dtype, n):
    y = -torch.eye(n, dtype=dtype)
    assert_is_log(y)
    assert_within(torch.linalg.matrix_norm(unitary_log(y)), math.pi * math.sqrt(n), 20 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_turns_beside_other_planes_are_found(dtype):
    assert_is_log(torch.diag(torch.tensor([-1, -1, 1], dtype=dtype)))
    assert_is_log(turning([math.pi, 0.3, math.pi, -2.0], 9, dtype=dtype))


def test_a_complex_matrix_turns_by_plus_or_minus_pi_at_minus_one():
    log = unitary_log(torch.tensor([[-1.0 + 0j]], dtype=torch.complex128))
    assert log.imag.abs().item() == math.pi


# Angles that meet at half a turn, are a hair apart there, or lie beside it.
@pytest.mark.parametrize("multiples", [(1,), (1, 1, 1), (1, 2, 3), (1, -1, 1, 30), range(1, 20)])
@pytest.mark.parametrize("gap", [1e-12, 1e-9, 1e-8, 1e-7, 1e-6, 9e-6, 1e-5, 1.1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_near_half_a_turn_are_told_apart(dtype, gap, multiples):
    angles = [math.pi - gap * m for m in multiples]
    for _ in range(3):
        assert_is_log(turning(angles, 2 * len(angles) + 1, dtype=dtype))


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_a_reflection_in_a_batch_leaves_the_others_as_they_are(dtype):
    y = unitary(4, 5, 5, dtype=dtype)
    alone = unitary_log(y[::2])
    y[1, :, 0] *= -1
    y[3] = torch.diag(torch.tensor([-1.0, -1, -1, 1, 1]))
    log = unitary_log(y)
    assert_bit_equal(log[::2], alone)
    assert log.isfinite().all()


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_a_batch_is_its_members_one_by_one(dtype):
    y = unitary(2, 3, 5, 5, dtype=dtype)
    one_by_one = torch.stack([unitary_log(m) for m in y.view(6, 5, 5)]).view_as(y)
    assert_same_to_rounding(unitary_log(y), one_by_one)
