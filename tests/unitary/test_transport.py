"""Vectors carried along a step."""

import pytest

from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_tangent, assert_within
from tests._matrices import eps, inner_reference, skewh, tangent_at

from ._cases import BATCH


def transports(case, x, u, v):
    """Every way to carry v along u, with the point it arrives at."""
    m = case.manifold
    y, z = m.retr(x, u), m.expmap(x, u)
    yield m.retr_transp(x, u, v)
    yield m.expmap_transp(x, u, v)
    yield y, m.transp_follow_retr(x, u, v)
    yield z, m.transp_follow_expmap(x, u, v)
    yield y, m.transp(x, y, v)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_transport_lands_in_the_tangent_space_of_the_point_it_arrives_at(case, norm):
    x = case.point(*BATCH)
    u, v = tangent_at(x, norm=norm), tangent_at(x)
    for y, carried in transports(case, x, u, v):
        assert_tangent(y, carried, ulps=20 * max(1.0, norm))
        assert case.manifold.check_vector_on_tangent(y, carried)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_transport_is_isometric(case, norm):
    x = case.point(*BATCH)
    u, v, w = tangent_at(x, norm=norm), tangent_at(x), tangent_at(x)
    before = inner_reference(v, w)
    for (y, v_y), (_, w_y) in zip(
        transports(case, x, u, v), transports(case, x, u, w), strict=True
    ):
        assert_within(case.manifold.inner(y, v_y, w_y), before, 20 * eps(case.dtype))


def test_the_ways_to_transport_agree(case):
    x = case.point(*BATCH)
    u, v, m = case.step(x), tangent_at(x), case.manifold
    y, v_y = m.retr_transp(x, u, v)
    assert_bit_equal(y, m.retr(x, u))
    assert_bit_equal(v_y, m.transp_follow_retr(x, u, v))
    assert_same_to_rounding(m.transp(x, y, v), v_y, ulps=100)
    z, v_z = m.expmap_transp(x, u, v)
    assert_bit_equal(z, m.expmap(x, u))
    assert_bit_equal(v_z, m.transp_follow_expmap(x, u, v))
    assert_same_to_rounding(m.transp(x, z, v), v_z, ulps=100)


def test_transport_carries_the_direction_of_the_step_itself(case):
    # Along t ↦ exp(tΩ)x the velocity is Ω exp(tΩ)x.
    x = case.point(*BATCH)
    u = case.step(x)
    omega = skewh(u @ x.mH)
    for y, carried in transports(case, x, u, u):
        assert_same_to_rounding(carried, omega @ y, ulps=100)


def test_a_reversible_step_undoes_itself(case):
    assert case.manifold.reversible == (case.k is None)
    x = case.point(*BATCH)
    # The others do not promise it, but steps of rank 2k come back all the same.
    u = case.step(x)
    y, u_y = case.manifold.retr_transp(x, u, u)
    x_again, u_again = case.manifold.retr_transp(y, -u_y, u_y)
    assert_same_to_rounding(x_again, x, ulps=200)
    assert_same_to_rounding(u_again, u, ulps=200)
