"""geoopt's Scaled of a manifold."""

import geoopt
import pytest

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal
from tests._matrices import DTYPES, tangent_at, unitary

from ._cases import N


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, None])
def test_scaling_divides_steps_and_multiplies_lengths(dtype, k):
    bare = LowRankUnitary(k)
    scaled = geoopt.Scaled(bare, 2.0)
    x, y = unitary(2, 2, N, N, dtype=dtype)
    u, v = tangent_at(x), tangent_at(x)
    assert_bit_equal(scaled.retr(x, u), bare.retr(x, u / 2))
    assert_bit_equal(scaled.expmap(x, u), bare.expmap(x, u / 2))
    for a, b in zip(scaled.retr_transp(x, u, v), bare.retr_transp(x, u / 2, v), strict=True):
        assert_bit_equal(a, b)
    assert_bit_equal(scaled.transp_follow_retr(x, u, v), bare.transp_follow_retr(x, u / 2, v))
    assert_bit_equal(scaled.dist(x, y), 2 * bare.dist(x, y))
    assert_bit_equal(scaled.dist2(x, y), 4 * bare.dist2(x, y))
    assert_bit_equal(scaled.logmap(x, y), 2 * bare.logmap(x, y))
    assert_bit_equal(scaled.inner(x, u, v), bare.inner(x, u, v))
    assert_bit_equal(scaled.egrad2rgrad(x, u), bare.egrad2rgrad(x, u))


def test_a_scaled_manifold_is_used_as_one():
    scaled = geoopt.Scaled(LowRankUnitary(2, retraction="cayley"), 4.0)
    assert repr(scaled) == "Scaled(LowRankUnitary)(k=2, retraction=cayley, sketch=tangent) manifold"
    assert scaled.k == 2
    assert scaled.ndim == 2
    point = geoopt.ManifoldParameter(unitary(6, 6), manifold=scaled)
    u = tangent_at(point.detach(), rank=4)
    assert_bit_equal(point.retr(u).detach(), scaled.base.retr(point.detach(), u / 4.0))
