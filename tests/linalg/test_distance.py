import math

import pytest
import torch

from geoopt_projunn.linalg.distance import GeodesicDistance
from tests._asserts import assert_same_to_rounding, assert_within
from tests._matrices import (
    DTYPES,
    REAL_DTYPES,
    WIDE_DTYPES,
    cayley_reference,
    eps,
    exponential_reference,
    skew,
    turning,
    unitary,
    wide,
)

# Torch's own, where forward mode is used first.
distance = GeodesicDistance.apply


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_is_the_norm_of_the_angles(dtype):
    x = unitary(6, 6, dtype=wide(dtype))
    y = turning([0.1, -1.0, 3.0], 6).to(x.dtype) @ x
    expected = math.sqrt(2 * (0.1**2 + 1 + 9))
    d = distance(x.to(dtype), y.to(dtype))
    assert d.dtype == torch.zeros((), dtype=dtype).real.dtype
    assert_within(d, expected, 20 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_is_symmetric_and_invariant_under_both_multiplications(dtype):
    x, y, z = unitary(3, 10, 5, 5, dtype=dtype)
    d = distance(x, y)
    assert_same_to_rounding(distance(y, x), d)
    assert_same_to_rounding(distance(z @ x, z @ y), d)
    assert_same_to_rounding(distance(x @ z, y @ z), d)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_distance_obeys_the_triangle_inequality(dtype):
    x, y, z = unitary(3, 50, 4, 4, dtype=dtype)
    assert (distance(x, z) <= distance(x, y) + distance(y, z) + 1e-14).all()


@pytest.mark.parametrize("norm", [1e-7, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_distance_along_a_short_geodesic_is_its_length(dtype, norm):
    x = unitary(5, 5, dtype=dtype)
    y = exponential_reference(skew(5, 5, norm=norm, dtype=dtype)) @ x
    assert_within(distance(x, y), norm, 2e-15)


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_no_path_between_opposite_determinants_has_finite_length(dtype):
    x, y = unitary(2, 3, 4, 4, dtype=dtype)
    y[1, 0] *= -1
    assert distance(x, y).isinf().tolist() == [False, True, False]


def along(x, directions):
    """A chart of the manifold around x: coordinates to a point."""
    return lambda t: cayley_reference((t[:, None, None] * directions).sum(0)) @ x


@pytest.mark.parametrize("angles", [(0.4, -1.1), (2.0, 2.0), (1e-3, 3.1)])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_gradient_of_the_distance_is_that_of_finite_differences(dtype, angles):
    x = unitary(5, 5, dtype=dtype)
    y = turning(angles, 5).to(dtype) @ x
    chart_x, chart_y = (along(p, skew(4, 5, 5, dtype=dtype)) for p in (x, y))
    origin = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: distance(chart_x(s), chart_y(t)),
        (origin, origin.detach().clone().requires_grad_()),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_grows_at_unit_speed_away_from_the_other_point(dtype):
    x, y = (p.requires_grad_() for p in unitary(2, 3, 5, 5, dtype=dtype))
    grads = torch.autograd.grad(distance(x, y).sum(), (x, y))
    for grad in grads:
        assert grad.dtype == dtype
        assert_within(torch.linalg.matrix_norm(grad), 1.0, 100 * eps(dtype))
    assert_within(grads[0], -(x @ y.mH @ grads[1]).detach(), 100 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_the_distance_of_a_point_to_itself_is_zero(dtype):
    x = unitary(4, 5, 5, dtype=dtype).requires_grad_()
    d = distance(x, x.detach().clone())
    assert_within(d.detach(), 0, 20 * eps(dtype))
    (grad,) = torch.autograd.grad(d.sum(), x)
    assert not grad.any()


def test_the_gradient_of_an_infinite_distance_is_zero():
    x, y = unitary(2, 2, 4, 4)
    y[1, 0] *= -1
    y.requires_grad_()
    (grad,) = torch.autograd.grad(distance(x, y)[1], y)
    assert not grad.any()


def pair(*batch, dtype, n=4):
    """Points that a path joins, away from the cut locus."""
    x = unitary(*batch, n, n, dtype=dtype)
    y = exponential_reference(skew(*batch, n, n, norm=2.0, dtype=dtype)) @ x
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_first_and_second_derivatives_of_any_mode_are_those_of_finite_differences(dtype):
    points = pair(2, dtype=dtype)
    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(distance, points, **modes)
    assert torch.autograd.gradgradcheck(distance, points, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_hessian_along_the_manifold_is_that_of_second_differences_of_the_value(dtype):
    x, y = (p.detach() for p in pair(dtype=dtype))
    chart = along(x, skew(5, 4, 4, dtype=dtype))

    def f(t):
        return distance(chart(t), y)

    hessian = torch.autograd.functional.hessian(f, torch.zeros(5, dtype=torch.float64))
    step = 1e-3 * torch.eye(5, dtype=torch.float64)
    differences = torch.stack(
        [
            torch.stack([f(a + b) - f(a - b) - f(b - a) + f(-a - b) for a in step]) / 4e-6
            for b in step
        ]
    )
    assert hessian.abs().max() > 0.1
    assert_within(hessian, differences, 1e-5)


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean], ids=["sum", "mean"])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_a_gradient_of_a_gradient_after_a_reduction_is_not_lost(dtype, reduce):
    """Its incoming gradient is constant, and torch sees no path through that."""
    x, y = pair(3, dtype=dtype)
    weight = torch.randn_like(x)

    def slope(x):
        (grad,) = torch.autograd.grad(reduce(distance(x, y)), x, create_graph=True)
        return (grad.conj() * weight).real.sum()

    (second,) = torch.autograd.grad(slope(x), x)
    direction = torch.randn_like(x)
    step = 1e-5 * direction
    difference = (slope(x + step) - slope(x - step)) / 2e-5
    assert second.abs().max() > 1e-3
    assert_within((second.conj() * direction).real.sum(), difference.detach(), 1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transforms_of_torch_func_give_what_autograd_does(dtype):
    x, y = (p.detach() for p in pair(3, dtype=wide(dtype)))
    x, y = x.to(dtype).requires_grad_(), y.to(dtype)
    (expected,) = torch.autograd.grad(distance(x, y).sum(), x)
    x = x.detach()
    assert_same_to_rounding(torch.func.vmap(distance)(x, y), distance(x, y))
    one = torch.func.vmap(distance, in_dims=(0, None))(x, y[0])
    assert_same_to_rounding(one, distance(x, y[:1].expand_as(x).contiguous()))
    assert_same_to_rounding(torch.func.vmap(torch.func.grad(distance))(x, y), expected)


def test_hessians_by_all_orders_of_modes_agree():
    x, y = (p.detach() for p in pair(dtype=torch.float64))

    def f(x):
        return distance(x, y)

    expected = torch.autograd.functional.hessian(f, x)
    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    for outer, inner in ((forward, reverse), (reverse, reverse), (reverse, forward)):
        assert_within(outer(inner(f))(x), expected, 1e-12)


def test_a_third_derivative_is_refused():
    x, y = pair(dtype=torch.float64)
    (first,) = torch.autograd.grad(distance(x, y), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"`dist` twice, but a higher.*differences"):
        torch.autograd.grad(second.sum(), x)
    hessian = torch.func.hessian(lambda x: distance(x, y.detach()))
    for mode in (torch.func.jacfwd, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"`dist` twice, but a higher.*differences"):
            mode(hessian)(x.detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_is_no_second_derivative_where_two_points_coincide(dtype):
    x = unitary(2, 4, 4, dtype=dtype)
    y = x.clone()
    y[1] = unitary(4, 4, dtype=dtype)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(distance(x, y).square().sum(), x, create_graph=True)
    assert not grad[0].any()
    (second,) = torch.autograd.grad(grad.abs().square().sum(), x)
    assert second[0].isnan().any()
    assert second[1].isfinite().all()
