"""Modules take torch.func, forward mode and batches of gradients, as torch's own operations do."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from geoopt_projunn.nn import OrthogonalConv1d, OrthogonalRNN
from tests._able import list_numbers_within_a_gradient, skip_unless
from tests._asserts import assert_within
from tests.nn._modules import LAYERS, MODULES, at, build, inputs, output, values

# torch's own, for the forward mode of some operations.
every_module = pytest.mark.parametrize("name", MODULES)
every_real_module = pytest.mark.parametrize(
    "name", [name for name in MODULES if "Orthogonal" in name]
)
every_layer = pytest.mark.parametrize("name", LAYERS)


def loss(module, parameters, x):
    y = at(module, parameters, x)
    return (y - 1).abs().square().sum() + y.real.sum()


def assert_same(actual, expected):
    assert actual.shape == expected.shape
    if expected.numel():
        assert_within(actual, expected, 1e-9 * max(1.0, expected.abs().max().item()))


@every_module
def test_derivatives_in_every_mode(name):
    """Torch's own checks: forward and reverse mode, each alone, over each other and batched."""
    module = build(name)
    names, parameters = zip(*values(module).items(), strict=True)
    leaves = (inputs(name, 1).requires_grad_(), *(p.requires_grad_() for p in parameters))

    def run(x, *parameters):
        return at(module, dict(zip(names, parameters, strict=True)), x)

    options = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        run, leaves, check_forward_ad=True, check_batched_forward_grad=True, **options
    )
    assert torch.autograd.gradgradcheck(run, leaves, check_fwd_over_rev=True, **options)


@every_module
def test_gradients_by_a_transform_are_those_of_backward(name):
    module, x = build(name), inputs(name)
    by_name = grad(lambda parameters: loss(module, parameters, x))(values(module))
    loss(module, dict(module.named_parameters()), x).backward()
    for key, p in module.named_parameters():
        assert_same(by_name[key], p.grad)


@every_module
def test_gradients_of_each_sample_are_those_of_a_loop(name):
    module = build(name)
    samples = torch.stack([inputs(name) for _ in range(3)])
    each = vmap(grad(lambda *given: loss(module, *given)), (None, 0))(values(module), samples)
    for i, x in enumerate(samples):
        expected = grad(lambda parameters, x=x: loss(module, parameters, x))(values(module))
        for key, value in expected.items():
            assert_same(each[key][i], value)


@every_module
def test_a_module_maps_over_inputs_along_any_dimension(name):
    module, samples = build(name), torch.stack([inputs(name) for _ in range(3)])
    expected = torch.stack([output(module, x) for x in samples])
    assert_same(vmap(lambda x: output(module, x))(samples), expected)
    assert_same(
        vmap(lambda x: output(module, x), in_dims=1, out_dims=1)(samples.transpose(0, 1)),
        expected.transpose(0, 1),
    )
    twice = vmap(vmap(lambda x: output(module, x)))(torch.stack([samples, -samples]))
    assert_same(twice[0], expected)


@every_module
def test_a_module_maps_over_each_of_its_parameters_alone_and_over_all(name):
    module, x = build(name), inputs(name)
    own = values(module)
    other = {key: p.roll(1, -1) * 1.5 for key, p in own.items()}
    for chosen in (*([key] for key in own), list(own)):
        stacked = {key: torch.stack([own[key], other[key]]) for key in chosen}
        mapped = vmap(lambda new: at(module, {**own, **new}, x))(stacked)
        for i, given in enumerate((own, other)):
            assert_same(mapped[i], at(module, {**own, **{key: given[key] for key in chosen}}, x))


@every_real_module
def test_jacobians_are_those_of_one_backward_pass_after_another(name):
    module, x = build(name), inputs(name)
    expected = torch.autograd.functional.jacobian(lambda x: output(module, x), x)
    for transform in (jacrev, jacfwd):
        assert_same(transform(lambda x: output(module, x))(x), expected)
    for strategy in ("reverse-mode", "forward-mode"):
        vectorized = torch.autograd.functional.jacobian(
            lambda x: output(module, x), x, vectorize=True, strategy=strategy
        )
        assert_same(vectorized, expected)


@every_real_module
def test_hessians_are_those_of_two_backward_passes(name):
    module, x = build(name), inputs(name, 1)
    key = next(iter(values(module)))
    rest = values(module)
    w = rest.pop(key)

    def of(w):
        return loss(module, {**rest, key: w}, x)

    if w.is_complex():
        w, of = torch.view_as_real(w), lambda w, of=of: of(torch.view_as_complex(w))
    assert_same(hessian(of)(w), torch.autograd.functional.hessian(of, w))


@every_module
def test_a_batch_of_gradients_is_a_loop_of_them(name):
    module, x = build(name), inputs(name).requires_grad_()
    y = output(module, x)
    leaves = [x, *module.parameters()]
    directions = torch.randn(3, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, leaves, directions, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda v: torch.autograd.grad(y, leaves, v, retain_graph=True))(directions)
    for i, direction in enumerate(directions):
        expected = torch.autograd.grad(y, leaves, direction, retain_graph=True)
        for one, other, value in zip(batched, mapped, expected, strict=True):
            assert_same(one[i], value)
            assert_same(other[i], value)


def test_a_batch_of_gradients_of_a_convolution_with_large_matrices():
    """Whose products are those of compiled kernels, which see one gradient."""
    layer = OrthogonalConv1d(128, 128, 4, dtype=torch.float64, init="haar")
    y = layer(torch.randn(2, 128, 4, dtype=torch.float64, requires_grad=True))
    leaves = list(layer.parameters())
    directions = torch.randn(2, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, leaves, directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        expected = torch.autograd.grad(y, leaves, direction, retain_graph=True)
        for one, value in zip(batched, expected, strict=True):
            assert_same(one[i], value)


@every_module
def test_a_tangent_goes_with_the_values(name):
    module, x = build(name), inputs(name)
    tangent = torch.randn_like(x)
    y, moved = jvp(lambda x: output(module, x), (x,), (tangent,))
    assert_same(y, output(module, x))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(output(module, forward_ad.make_dual(x, tangent)))
    assert_same(dual.tangent, moved)
    step = 1e-6 * tangent
    difference = (output(module, x + step) - output(module, x - step)) / 2e-6
    assert_within(moved, difference, 1e-6)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@every_module
def test_linear_maps_and_graphs_of_modules_at_plain_values(name):
    """Torch's tracer takes no parameter of geoopt, so that they have to be given as tensors."""
    module, x = build(name), inputs(name)
    own, tangent = values(module), torch.randn_like(x)
    _, pushed = jvp(lambda x: at(module, own, x), (x,), (tangent,))
    _, push = linearize(lambda x: at(module, own, x), x)
    assert_same(push(tangent), pushed)
    graph = make_fx(lambda own, x: at(module, own, x))(own, x)
    other = {key: 2 * p for key, p in own.items()}
    assert_same(graph(other, 3 * x), at(module, other, 3 * x))


@every_layer
def test_all_forms_of_a_recurrent_layer_are_transformed(name):
    layer = build(name, num_layers=2, bidirectional=True, batch_first=True)
    dtype = layer.weight_hh_l0.dtype
    x, h0 = torch.randn(3, 2, 5, 3, dtype=dtype), torch.randn(3, 4, 2, 4, dtype=dtype)
    for mapped, one in (
        (vmap(layer)(x, h0), lambda i: layer(x[i], h0[i])),
        (vmap(layer, (None, 0))(x[0], h0), lambda i: layer(x[0], h0[i])),
        (vmap(layer, (0, None))(x, h0[0]), lambda i: layer(x[i], h0[0])),
        (vmap(layer)(x[:, 0], h0[:, :, 0]), lambda i: layer(x[i, 0], h0[i, :, 0])),
    ):
        for i in range(3):
            for actual, expected in zip(mapped, one(i), strict=True):
                assert_same(actual[i], expected)


@every_layer
def test_the_rows_of_a_packed_batch_are_transformed(name):
    skip_unless(list_numbers_within_a_gradient)
    layer = build(name, bidirectional=True)
    packed = torch.nn.utils.rnn.PackedSequence(
        torch.randn(8, 3, dtype=layer.weight_hh_l0.dtype), torch.tensor([4, 3, 1])
    )

    def run(data):
        states, last = layer(packed._replace(data=data))
        return (states.data - 1).abs().square().sum() + last.abs().square().sum()

    data = packed.data.clone().requires_grad_()
    run(data).backward()
    assert_same(grad(run)(packed.data), data.grad)
    both = torch.stack([packed.data, 2 * packed.data])
    assert_same(vmap(run)(both), torch.stack([run(rows) for rows in both]))


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_transforms_that_torchs_layer_has_give_what_it_gives(nonlinearity):
    layer = build(f"OrthogonalRNN {nonlinearity}", num_layers=2, bidirectional=True)
    theirs = torch.nn.RNN(3, 4, 2, nonlinearity, bidirectional=True).double()
    x, tangent = torch.randn(5, 2, 3).double(), torch.randn(5, 2, 3).double()
    parameters = values(layer)
    for transform in (
        lambda run: grad(lambda x: run(x).square().sum())(x),
        lambda run: jacrev(run)(x),
        lambda run: jacfwd(run)(x),
        lambda run: jvp(run, (x,), (tangent,))[1],
    ):
        ours, expected = (
            transform(lambda x, rnn=rnn: functional_call(rnn, parameters, (x,))[0])
            for rnn in (layer, theirs)
        )
        assert_same(ours, expected)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_where_torchs_kernels_would_run_transforms_take_the_loop(nonlinearity, monkeypatch):
    layer = build(f"OrthogonalRNN {nonlinearity}")
    x = torch.randn(3, 5, 2, 3).double()
    expected = torch.stack([layer(one)[0] for one in x])
    monkeypatch.setattr(OrthogonalRNN, "_fused", True)
    assert_same(vmap(lambda x: layer(x)[0])(x), expected)


# -- subclasses ------------------------------------------------------------------------


class Named(torch.Tensor):
    """Made by torch's rules for subclasses."""


class Wrapped(torch.Tensor):
    """Holds its values in another tensor, as DTensor does."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(x):
            return x.inner if isinstance(x, cls) else x

        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        out = func(*args, **kwargs)
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: cls(t.resolve_conj()), out)


@pytest.mark.parametrize(
    "make", [lambda x: x.as_subclass(Named), Wrapped], ids=["named", "wrapped"]
)
@every_module
def test_an_input_of_a_subclass(name, make):
    module, x = build(name), inputs(name)
    expected = output(module, x)
    y = output(module, make(x))
    assert type(y) is type(make(x))
    plain = y.inner if isinstance(y, Wrapped) else y.as_subclass(torch.Tensor)
    assert_same(plain, expected)
    plain_gradients = torch.autograd.grad((expected - 1).abs().sum(), list(module.parameters()))
    gradients = torch.autograd.grad((y - 1).abs().sum(), list(module.parameters()))
    for actual, value in zip(gradients, plain_gradients, strict=True):
        assert_same(
            actual.inner if isinstance(actual, Wrapped) else actual.as_subclass(torch.Tensor), value
        )
