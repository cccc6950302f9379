"""Distances and logarithms, up to half a turn."""

import math

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_same_to_rounding, assert_tangent, assert_within
from tests._matrices import DTYPES, REAL_DTYPES, eps, tangent_at, turning, unitary

from ._cases import BATCH


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
def test_the_distance_along_a_short_geodesic_is_the_norm_of_its_direction(case, norm):
    x = case.point(*BATCH)
    v = tangent_at(x, norm=norm)
    y = case.manifold.expmap(x, v)
    length = case.manifold.norm(x, v)
    assert_within(length, norm, 10 * norm * eps(case.dtype))
    assert_within(case.manifold.dist(x, y), length, 20 * eps(case.dtype))
    assert_within(case.manifold.dist2(x, y), length**2, 40 * max(1.0, norm) * eps(case.dtype))


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
def test_logmap_undoes_expmap_of_a_short_vector(case, norm):
    x = case.point(*BATCH)
    v = tangent_at(x, norm=norm)
    recovered = case.manifold.logmap(x, case.manifold.expmap(x, v))
    assert_tangent(x, recovered)
    assert_within(recovered, v, 50 * eps(case.dtype))


def test_expmap_undoes_logmap_for_any_two_points(case):
    x, y = case.point(*BATCH), case.point(*BATCH)
    v = case.manifold.logmap(x, y)
    assert_tangent(x, v)
    assert_same_to_rounding(case.manifold.expmap(x, v), y, ulps=50)
    assert_same_to_rounding(case.manifold.norm(x, v), case.manifold.dist(x, y), ulps=20)


dtypes = pytest.mark.parametrize("dtype", DTYPES)
ranks = pytest.mark.parametrize("k", [1, None])


@dtypes
@ranks
def test_logmap_finds_half_turns(dtype, k):
    manifold = LowRankUnitary(k)
    x = unitary(4, 4, dtype=dtype)
    y = -x
    v = manifold.logmap(x, y)
    assert_within(manifold.norm(x, v) / (2 * math.pi), 1.0, 20 * eps(dtype))
    assert_within(manifold.dist(x, y) / (2 * math.pi), 1.0, 20 * eps(dtype))
    assert_within(manifold.expmap(x, v), y, 50 * eps(dtype))
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0]).diag().to(dtype) @ x
    assert_within(manifold.expmap(x, manifold.logmap(x, y)), y, 50 * eps(dtype))


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
@dtypes
def test_logmap_and_expmap_meet_near_half_a_turn(dtype, gap):
    manifold = LowRankUnitary()
    x = unitary(7, 7, dtype=dtype)
    y = turning([math.pi - gap, math.pi - 2 * gap, 1.0], 7, dtype=dtype) @ x
    assert_within(manifold.expmap(x, manifold.logmap(x, y)), y, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_no_path_joins_opposite_determinants(dtype):
    manifold = LowRankUnitary()
    x, y = unitary(2, 3, 4, 4, dtype=dtype)
    y[1, 0] *= -1
    assert manifold.dist(x, y).isinf().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"determinants differ in sign; negate one column"):
        manifold.logmap(x, y)
    y[1, 0] *= -1
    assert manifold.logmap(x, y).isfinite().all()


def test_no_path_joins_opposite_determinants_of_large_matrices():
    # In single precision the product of the pivots is 0.
    x, y = unitary(2, 512, 512).to(torch.float32)
    y[0] *= -1
    with pytest.raises(ValueError, match="determinants differ in sign"):
        LowRankUnitary().logmap(x, y)


def test_the_distance_of_several_blocks_is_the_root_of_the_sum_of_squares():
    x, y = unitary(2, 5, 3, 4, 4, dtype=torch.complex128)
    apart = LowRankUnitary().dist(x, y).square().sum(-1).sqrt()
    stacked, other = x.flatten(1, 2), y.flatten(1, 2)
    manifold = LowRankUnitary(blocks=3)
    assert_within(manifold.dist(stacked, other), apart, 1e-12)
    assert manifold.dist(stacked, other, keepdim=True).shape == (5, 1, 1)
