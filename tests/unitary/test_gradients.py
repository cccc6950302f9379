"""Methods are differentiated rightly, or not at all."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from tests._able import compile_steps, read_bits_within_vmap, skip_unless
from tests._asserts import assert_within
from tests._matrices import (
    DTYPES,
    RETRACTIONS,
    WIDE_DTYPES,
    cayley_reference,
    eps,
    exponential_reference,
    skew,
    tangent_at,
    unitary,
)

from ._methods import LOW_RANK, METHODS, arguments, tensors


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_retr_without_truncation_is_differentiable(retraction, dtype):
    manifold = LowRankUnitary(None, retraction=retraction)
    x, u = unitary(4, 4, dtype=dtype), skew(4, 4, dtype=dtype)
    assert torch.autograd.gradcheck(manifold.retr, (x.requires_grad_(), u.requires_grad_()))


@pytest.mark.parametrize("method", LOW_RANK)
def test_a_step_that_truncates_refuses_a_derivative(method):
    inputs = [t.requires_grad_() for t in arguments(2)]
    for result in tensors(METHODS[method](LowRankUnitary(1), *inputs)):
        loss = result.sum() + inputs[0].sum()
        with pytest.raises(RuntimeError, match=rf"`{method}` with a rank k.*k=None.*detach"):
            loss.backward()
        assert all(t.grad is None for t in inputs[1:])
    with torch.no_grad():
        for result in tensors(METHODS[method](LowRankUnitary(1), *inputs)):
            assert not result.requires_grad
    for result in tensors(METHODS[method](LowRankUnitary(1), *(t.detach() for t in inputs))):
        assert not result.requires_grad
    for result in tensors(METHODS[method](LowRankUnitary(None), *inputs)):
        assert result.requires_grad


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("kind", [LowRankUnitary, LowRankStiefel])
@pytest.mark.parametrize("method", LOW_RANK)
def test_a_matrix_of_one_entry_is_stepped_whole_and_has_the_derivative(method, kind, dtype):
    x = unitary(2, 1, 1, dtype=dtype)
    u, v = torch.randn(2, 2, 1, 1, dtype=dtype)
    inputs = [t.requires_grad_() for t in (x, x, u, v)]

    def run(*inputs):
        return METHODS[method](kind(), *inputs)

    assert torch.autograd.gradcheck(run, inputs)
    for actual, exact in zip(
        tensors(run(*inputs)), tensors(METHODS[method](kind(None), *inputs)), strict=True
    ):
        assert torch.equal(actual, exact)


@pytest.mark.parametrize("method", LOW_RANK)
def test_torch_func_is_refused_the_derivative_of_a_step_that_truncates(method):
    x, y, u, v = arguments()

    def loss(u):
        return sum(t.sum() for t in tensors(METHODS[method](LowRankUnitary(1), x, y, u, v)))

    with pytest.raises(RuntimeError, match=rf"`{method}` with a rank k"):
        torch.func.grad(loss)(u)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("method", LOW_RANK)
def test_vmap_is_refused_the_derivative_of_a_step_that_truncates(method):
    skip_unless(read_bits_within_vmap)
    x, y, u, v = arguments(3)
    manifold = LowRankUnitary(1)
    u.requires_grad_()

    def total(x, u):
        return sum(t.sum() for t in tensors(METHODS[method](manifold, x, y[0], u, v[0])))

    loss = torch.func.vmap(total, in_dims=(None, 0))(x[0], u).sum() + u.sum()
    with pytest.raises(RuntimeError, match=rf"`{method}` with a rank k"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", LOW_RANK)
def test_forward_mode_is_refused_the_derivative_of_a_step_that_truncates(method, grad):
    x, y, u, v = arguments()

    def moved(u):
        return METHODS[method](LowRankUnitary(1), x, y, u, v)

    refusal = pytest.raises(RuntimeError, match=rf"`{method}` with a rank k.*detach the arguments")
    with torch.set_grad_enabled(grad):
        with refusal:
            torch.func.jvp(moved, (u,), (v,))
        with refusal:
            torch.func.jacfwd(moved)(u)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(u, v)
            with refusal:
                moved(dual)
        # Constants have none.
        constant = [t.clone() for t in tensors(moved(u))]
        _, tangent = torch.func.jvp(lambda u: tensors(moved(u.detach()))[0] + 2 * u, (u,), (v,))
    assert torch.equal(tangent, 2 * v)
    for one, other in zip(tensors(moved(u)), constant, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["egrad2rgrad", "retr_transp"])
def test_a_compiled_step_that_truncates_refuses_a_derivative(method):
    skip_unless(compile_steps)
    inputs = arguments()
    manifold = LowRankUnitary(1)

    def step(*inputs):
        return tensors(METHODS[method](manifold, *inputs))

    # Its partitioner is the one that moves to the forward pass what it can.
    compiled = torch.compile(step, backend="aot_eager_decomp_partition")
    for result, expected in zip(compiled(*inputs), step(*inputs), strict=True):
        assert_within(result, expected, 1e-12)
    inputs = [t.requires_grad_() for t in inputs]
    loss = sum(t.sum() for t in (*compiled(*inputs), inputs[0]))
    with pytest.raises(RuntimeError, match=rf"`{method}` with a rank k.*k=None.*detach"):
        loss.backward()
    with pytest.raises(RuntimeError, match=rf"`{method}` with a rank k.*forward mode"):
        torch.func.jvp(compiled, tuple(t.detach() for t in inputs), tuple(inputs))
    with torch.no_grad():
        assert not any(result.requires_grad for result in compiled(*inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_step_that_truncates_can_be_traced_and_then_refuses_a_derivative():
    x, _, u, v = arguments()
    traced = torch.jit.trace(lambda x, u: LowRankUnitary(1).retr(x, u), (x.requires_grad_(), u))
    result = traced(x, v)
    assert torch.equal(result, LowRankUnitary(1).retr(x, v))
    with pytest.raises(RuntimeError, match=r"`retr` with a rank k"):
        (result.sum() + x.sum()).backward()


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_logmap_is_differentiable_once_along_the_manifold(dtype, norm):
    manifold = LowRankUnitary()
    x = unitary(5, 5, dtype=dtype)
    y = exponential_reference(skew(5, 5, norm=norm, dtype=dtype)) @ x
    turns = skew(2, 3, 5, 5, dtype=dtype)

    def log(s, t):
        near_x, near_y = (
            cayley_reference((r[:, None, None] * turn).sum(0)) @ p
            for r, turn, p in zip((s, t), turns, (x, y), strict=True)
        )
        value = manifold.logmap(near_x, near_y)
        return torch.view_as_real(value) if value.is_complex() else value

    origin = [torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(log, origin)
    (grad,) = torch.autograd.grad(log(*origin).sum(), origin[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"`logmap` can be differentiated once.*differences"):
        torch.autograd.grad(grad.sum(), origin[0])


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("name", ["expmap", "proju", "inner", "transp_follow_expmap"])
def test_exact_methods_are_differentiable(name, dtype):
    method = getattr(LowRankUnitary(), name)
    x, u, v = unitary(4, 4, dtype=dtype), skew(4, 4, dtype=dtype), skew(4, 4, dtype=dtype)
    count = 3 if name in ("inner", "transp_follow_expmap") else 2
    inputs = [t.requires_grad_() for t in (x, u, v)][:count]
    assert torch.autograd.gradcheck(method, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_descent_along_the_gradient_of_the_distance_ends_at_the_other_point(dtype):
    manifold = LowRankUnitary(None)
    y = unitary(2, 5, 5, dtype=dtype)
    x = geoopt.ManifoldParameter(manifold.expmap(y, tangent_at(y, norm=1.5)), manifold=manifold)
    (grad,) = torch.autograd.grad(manifold.dist(x, y).sum(), x)
    # The gradient has length one and points along the geodesic that joins the points.
    ends = manifold.expmap(x.detach(), -1.5 * manifold.egrad2rgrad(x.detach(), grad))
    assert_within(ends, y, 100 * eps(dtype))
