"""Vectors carried along a step, or from point to point."""

import pytest
import torch

from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import WIDE_DTYPES, eps, polar_reference, wide

from ._cases import BATCH, Case, canonical, check, tangent_generator


def test_transport_is_isometric_tangent_and_one(case):
    x, m = case.point(*BATCH), case.manifold
    u, v, w = case.tangent(x, case.rank()), case.tangent(x), case.tangent(x)
    y, v_y = m.retr_transp(x, u, v)
    assert_bit_equal(y, m.retr(x, u))
    assert_bit_equal(v_y, m.transp_follow_retr(x, u, v))
    z, v_z = m.expmap_transp(x, u, v)
    assert_bit_equal(z, m.expmap(x, u))
    assert_bit_equal(v_z, m.transp_follow_expmap(x, u, v))
    ways = [
        (y, v_y, m.transp_follow_retr(x, u, w)),
        (z, v_z, m.transp_follow_expmap(x, u, w)),
        (y, m.transp(x, y, v), m.transp(x, y, w)),
    ]
    for arrived, first, second in ways:
        check(case, arrived, first, ulps=50)
        assert first.is_contiguous()
        before = canonical(case, x, v, w)
        assert_within(canonical(case, arrived, first, second), before, 100 * eps(case.dtype))


def test_transport_carries_the_direction_of_the_step(case):
    x, m = case.point(*BATCH), case.manifold
    u = case.tangent(x, case.rank())
    y, u_y = m.retr_transp(x, u, u)
    omega = tangent_generator(*(case.tall(t).to(wide(case.dtype)) for t in (x, u)))
    expected = case.back(omega @ case.tall(y).to(omega.dtype), y)
    assert_within(u_y, expected, 200 * eps(case.dtype))


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_transport_between_two_points_is_the_nearest_rotation_that_joins_them(dtype):
    case = Case((9, 4), 1, 1, dtype)
    x, y = case.point(), case.point()
    v = case.tangent(x)
    eye = torch.eye(9, dtype=dtype)
    rotation = polar_reference(y @ x.mH + (eye - y @ y.mH) @ (eye - x @ x.mH))
    assert_within(rotation @ x, y, 1e-12)
    assert_within(case.manifold.transp(x, y, v), rotation @ v, 1e-12)
    assert_within(case.manifold.transp(x, x, v), v, 1e-13)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_transport_between_points_at_right_angles_is_isometric_and_tangent(dtype):
    """Where the product of two points is singular, one of many nearest rotations is taken."""
    case = Case((9, 3), 1, 1, dtype)
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=dtype)).Q
    x, v, w = basis[:, :3], case.tangent(basis[:, :3]), case.tangent(basis[:, :3])
    for columns in ([3, 4, 5], [0, 3, 4], [1, 2, 6]):
        y = basis[:, columns]
        first, second = case.manifold.transp(x, y, v), case.manifold.transp(x, y, w)
        assert_within(first.mH @ y + y.mH @ first, torch.zeros(3, 3, dtype=dtype), 1e-13)
        assert_within(canonical(case, y, first, second), canonical(case, x, v, w), 1e-13)
