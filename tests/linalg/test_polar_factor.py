import geoopt
import pytest
import torch

from geoopt_projunn.linalg.polar_factor import PolarFactor
from tests._asserts import assert_same_to_rounding, assert_within
from tests._matrices import DTYPES, WIDE_DTYPES, proju_reference, unitary, wide

# Torch's own, where forward mode is used first.


def polar(x):
    return PolarFactor.apply(x, False)


def copy(x):
    return PolarFactor.apply(x, True)


def with_singular_values(values, *batch, dtype):
    n = len(values)
    u, v = unitary(2, *batch, n, n, dtype=wide(dtype))
    return (u @ torch.diag(torch.tensor(values, dtype=u.dtype)) @ v).to(dtype)


SPECTRA = {
    "generic": [2.0, 1.3, 0.7, 0.2],
    "repeated": [3.0, 3.0, 0.5, 0.5],
    "all equal": [2.0, 2.0, 2.0, 2.0],
    "unitary": [1.0, 1.0, 1.0, 1.0],
    "ill conditioned": [1.0, 1.0, 0.5, 0.01],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_derivatives_of_any_mode_are_those_of_finite_differences(dtype, spectrum):
    x = with_singular_values(SPECTRA[spectrum], 2, dtype=dtype).requires_grad_()
    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(polar, (x,), **modes)
    if spectrum != "ill conditioned":
        assert torch.autograd.gradgradcheck(polar, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_a_unitary_matrix_the_gradient_is_the_projection_on_the_tangent_space(dtype):
    x = unitary(3, 5, 5, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    expected = proju_reference(x.detach(), grad)
    for function in (copy, polar):
        assert_same_to_rounding(torch.autograd.grad(function(x), x, grad)[0], expected)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_a_copy_and_a_projection_have_the_same_second_derivative(dtype):
    x = unitary(2, 4, 4, dtype=dtype)
    grad, weight = torch.randn_like(x), torch.randn_like(x)

    def second(function):
        point = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(point), point, grad, create_graph=True)
        return torch.autograd.grad((first.conj() * weight).real.sum(), point)[0]

    assert second(polar).abs().max() > 0.1
    assert_same_to_rounding(second(copy), second(polar), ulps=200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_stiefel_in_geoopt(dtype):
    """Which differentiates the decomposition: well where singular values lie apart."""
    x = with_singular_values([3.0, 2.2, 1.4, 0.6], 2, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    (expected,) = torch.autograd.grad(geoopt.EuclideanStiefel().projx(x), x, grad)
    assert_same_to_rounding(torch.autograd.grad(polar(x), x, grad)[0], expected, ulps=100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_precision_has_the_gradient_of_double_precision(dtype):
    x = with_singular_values([2.0, 2.0, 1.0, 0.5], dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    exact = x.detach().to(wide(dtype)).requires_grad_()
    (expected,) = torch.autograd.grad(polar(exact), exact, grad.to(wide(dtype)))
    assert_same_to_rounding(torch.autograd.grad(polar(x), x, grad)[0], expected.to(dtype), ulps=50)


def test_a_real_matrix_with_one_singular_value_zero_has_a_derivative():
    """Its polar factors on either side differ by a sign, but each one moves smoothly."""
    x = with_singular_values([2.0, 1.0, 0.0], dtype=torch.float64).requires_grad_()
    grad = torch.randn_like(x)
    y = polar(x)
    (actual,) = torch.autograd.grad(y, x, grad)
    moved = x.detach() + 1e-9 * y.detach()
    moved.requires_grad_()
    assert_within(actual, torch.autograd.grad(polar(moved), moved, grad)[0], 1e-7)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_transforms_of_torch_func_give_what_autograd_does(dtype):
    x = with_singular_values([2.0, 1.3, 0.7, 0.2], 3, dtype=dtype).requires_grad_()
    weight = torch.randn_like(x[0])

    def f(x):
        return (polar(x).conj() * weight).real.sum((-2, -1))

    (expected,) = torch.autograd.grad(f(x).sum(), x)
    assert_same_to_rounding(torch.func.vmap(polar)(x), polar(x))
    assert_same_to_rounding(torch.func.vmap(torch.func.grad(f))(x.detach()), expected)
    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(f, (x.detach(),), (direction,))
    assert_same_to_rounding(slope, (expected.conj() * direction).real.sum((-2, -1)), ulps=200)


def test_hessians_by_all_orders_of_modes_agree():
    x, weight = (
        with_singular_values([2.0, 1.3, 0.7], dtype=torch.float64),
        torch.randn(3, 3).double(),
    )

    def f(x):
        return (polar(x) * weight).sum()

    expected = torch.autograd.functional.hessian(f, x)
    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    for outer, inner in ((forward, reverse), (reverse, reverse), (reverse, forward)):
        assert_within(outer(inner(f))(x), expected, 1e-12)
