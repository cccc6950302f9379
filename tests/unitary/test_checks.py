"""Checks of points and vectors say why they fail."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._matrices import DTYPES, tangent_at, unitary

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def test_check_point_on_manifold_gives_its_reason():
    manifold = LowRankUnitary()
    x = unitary(2, 4, 4)
    assert manifold.check_point_on_manifold(x)
    assert manifold.check_point_on_manifold(x, explain=True) == (True, None)
    ok, reason = manifold.check_point_on_manifold(1.01 * x, explain=True)
    assert not ok
    assert reason == "`xᴴx != I` by 2.0e-02 with atol=1e-05, rtol=1e-05"
    assert manifold.check_point_on_manifold(1.01 * x, atol=0.1)
    manifold.assert_check_point_on_manifold(x)
    with pytest.raises(
        ValueError, match=r"not lying on LowRankUnitary manifold.\nerror: `xᴴx != I`"
    ):
        manifold.assert_check_point_on_manifold(1.01 * x)


@dtypes
def test_check_vector_on_tangent_gives_its_reason(dtype):
    manifold = LowRankUnitary()
    x = unitary(2, 4, 4, dtype=dtype)
    u = tangent_at(x)
    assert manifold.check_vector_on_tangent(x, u)
    ok, reason = manifold.check_vector_on_tangent(x, u + 0.5 * x, explain=True)
    assert not ok
    assert reason == "`xᴴu + uᴴx != 0` by 1.0e+00 with atol=1e-05, rtol=1e-05"
    # The normal part is the identity times this, twice.
    near = u + 1e-3 * x
    assert not manifold.check_vector_on_tangent(x, near)
    assert manifold.check_vector_on_tangent(x, near, atol=3e-3)
    assert not manifold.check_vector_on_tangent(x, near, rtol=1.0)
    assert not manifold.check_vector_on_tangent(2 * x, u)
    assert manifold.check_vector_on_tangent(2 * x, u, ok_point=True)
    with pytest.raises(ValueError, match="not lying on tangent space"):
        manifold.assert_check_vector_on_tangent(x, x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float16, torch.bool])
def test_no_check_accepts_a_point_of_a_dtype_that_no_method_takes(dtype):
    manifold, eye = LowRankUnitary(), torch.eye(4).to(dtype)
    for check in (manifold.check_point, manifold.check_point_on_manifold):
        ok, reason = check(eye, explain=True)
        assert not ok
        assert "float32" in reason
        assert not check(eye)


def test_checks_of_shape_give_their_reason():
    manifold = LowRankUnitary(3)
    for check in (manifold.check_point, manifold.check_vector, manifold.check_point_on_manifold):
        assert check(torch.eye(6))
        ok, reason = check(torch.ones(6, 7), explain=True)
        assert not ok
        assert "must have shape (*, n, n), got (6, 7)" in reason
        ok, reason = check(torch.eye(5), explain=True)
        assert not ok
        assert "`k` must satisfy 1 <= k <= n // 2 = 2, got 3" in reason
