"""Inner products, norms and the orthogonality error."""

import math

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests._matrices import DTYPES, eps, inner_reference, unitary

dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
def test_inner_is_the_real_part_of_the_trace(dtype):
    manifold = LowRankUnitary()
    x, u, v = torch.randn(3, 2, 3, 5, 5, dtype=dtype)
    inner = manifold.inner(x, u, v)
    assert inner.dtype == x.real.dtype
    assert inner.shape == (2, 3)
    assert_same_to_rounding(inner, inner_reference(u, v))
    assert_same_to_rounding(manifold.inner(x, v, u), inner)
    assert_same_to_rounding(manifold.inner(x, u), manifold.norm(x, u) ** 2)
    assert_same_to_rounding(manifold.norm(x, u), torch.linalg.matrix_norm(u))


@dtypes
def test_inner_keeps_dimensions_when_told_to(dtype):
    manifold = LowRankUnitary()
    x, u, v = torch.randn(3, 2, 3, 5, 5, dtype=dtype)
    for value in (
        manifold.inner(x, u, v, keepdim=True),
        manifold.inner(x, u, keepdim=True),
        manifold.component_inner(x, u, v),
        manifold.component_inner(x, u),
        manifold.norm(x, u, keepdim=True),
        manifold.dist(unitary(2, 3, 5, 5), unitary(2, 3, 5, 5), keepdim=True),
    ):
        assert value.shape == (2, 3, 1, 1)
    assert_bit_equal(manifold.component_inner(x, u, v).flatten(), manifold.inner(x, u, v).flatten())


@dtypes
def test_the_orthogonality_error_is_measured_without_a_gradient(dtype):
    manifold = LowRankUnitary()
    x = (2 * unitary(2, 3, 5, 5, dtype=dtype)).requires_grad_()
    error = manifold.orthogonality_error(x)
    assert not error.requires_grad
    assert error.dtype == x.real.dtype
    assert error.shape == (2, 3)
    assert_within(error, 3 * math.sqrt(5), 100 * eps(dtype))
