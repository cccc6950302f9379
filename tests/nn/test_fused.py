"""torch's own kernels, which a GPU uses for relu and tanh, keep the promises of the other path."""

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geoopt_projunn.nn import OrthogonalRNN
from tests._precision_settings import (
    REDUCED,
    forget,
    products_are_full,
    recurrences_are_full,
    snapshot,
    use,
)
from tests.nn.test_costs import kept


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    monkeypatch.setattr(OrthogonalRNN, "_fused", True)
    yield
    forget()


class Settings(TorchDispatchMode):
    """Look at the settings of recurrences and products while products run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            self.seen.add((recurrences_are_full() and products_are_full(), args[-1].dtype))
        return func(*args, **(kwargs or {}))


# cuDNN's own default is TF32.
@pytest.mark.parametrize("setting", [None, *REDUCED])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_both_passes_run_in_full_precision_also_in_autocast(nonlinearity, setting):
    layer = OrthogonalRNN(3, 8, 2, nonlinearity)
    x = torch.randn(5, 2, 3, requires_grad=True)
    if setting is not None:
        use(*setting)
    assert not recurrences_are_full()
    before = snapshot()
    for within in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=within), Settings() as forward:
            states, _ = layer(x.bfloat16() if within else x)
        with torch.autocast("cpu", torch.bfloat16, enabled=within), Settings() as backward:
            torch.autograd.grad(states, [x, *layer.parameters()], torch.ones_like(states))
        assert forward.seen == backward.seen == {(True, torch.float32)}
        assert states.dtype == torch.float32
    assert snapshot() == before


def test_what_is_kept_is_what_torch_keeps_and_freed_when_torch_frees_it():
    x = torch.randn(50, 4, 3)
    options = {"num_layers": 2, "nonlinearity": "relu"}
    ours, states = kept(OrthogonalRNN(3, 16, **options), x)
    theirs, _ = kept(torch.nn.RNN(3, 16, **options), x)
    assert ours == theirs
    loss = states.sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_settings_are_put_back_after_an_error_in_the_backward_pass():
    states, _ = OrthogonalRNN(3, 8, nonlinearity="tanh")(torch.randn(5, 2, 3))
    before = snapshot()
    loss = states.square().sum()
    with torch.no_grad():
        states.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert snapshot() == before


def test_a_second_derivative_is_refused_and_there_without_cudnn():
    layer = OrthogonalRNN(3, 8, nonlinearity="tanh", dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def penalty():
        (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        return first.square().sum()

    remedy = r"second derivatives.*cudnn\.flags\(enabled=False\)"
    with pytest.raises(RuntimeError, match=remedy):
        penalty().backward()
    for leaf in (x, layer.weight_hh_l0, layer.bias_ih_l0):
        with pytest.raises(RuntimeError, match=remedy):
            torch.autograd.grad(penalty(), leaf, allow_unused=True)
    # Of what comes after the layer too, through the gradient that it is given.
    scale = torch.ones(8, dtype=torch.float64, requires_grad=True)
    total = (layer(x)[0] * scale).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(RuntimeError, match=remedy):
        torch.autograd.grad(first.sum(), scale, allow_unused=True)
    with torch.backends.cudnn.flags(enabled=False):
        expected = penalty()
        expected.backward()
    assert x.grad.any()
    assert torch.allclose(penalty(), expected)


def test_parameters_that_need_no_gradient_get_none():
    layer = OrthogonalRNN(3, 8, nonlinearity="relu")
    layer.weight_ih_l0.requires_grad_(False)
    _, last = layer(torch.randn(5, 2, 3))
    last.sum().backward()
    assert layer.weight_ih_l0.grad is None
    assert layer.weight_hh_l0.grad.any()
    layer.requires_grad_(False)
    assert not layer(torch.randn(5, 2, 3))[0].requires_grad


def test_what_it_was_given_is_freed_with_what_it_kept():
    def is_freed(layer, gradient):
        values = np.ones((5, 2, 3), np.float32)
        freed, x = weakref.ref(values), torch.from_numpy(values)
        # A leaf would be kept by the graph, as torch's own layer keeps it.
        x.add_(torch.zeros((), requires_grad=gradient))
        loss = layer(x)[0].sum()
        del values, x
        assert freed() is not None
        loss.backward()
        return freed() is None

    for kind in (OrthogonalRNN, torch.nn.RNN):
        for gradient in (False, True):
            assert is_freed(kind(3, 8, nonlinearity="relu"), gradient)


def test_a_hook_of_a_parameter_or_an_input_is_called_once():
    layer = OrthogonalRNN(3, 8, nonlinearity="tanh")
    x = torch.randn(5, 2, 3, requires_grad=True)
    leaves = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0].sum(), leaves)
    calls = []
    for leaf in leaves:
        leaf.register_hook(lambda grad: calls.append(grad) or 2 * grad)
    layer(x)[0].sum().backward()
    assert len(calls) == len(leaves)
    for leaf, once in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, 2 * once)


def test_gradients_go_to_the_weights_of_a_functional_call_and_then_to_its_own():
    layer = OrthogonalRNN(3, 8, nonlinearity="relu")
    x = torch.randn(5, 2, 3)
    own = dict(layer.named_parameters())
    others = {name: (p.detach() / 2).requires_grad_() for name, p in own.items()}
    twin = torch.nn.RNN(3, 8, nonlinearity="relu")
    for weights in (others, own):
        states, _ = torch.func.functional_call(layer, weights, (x,))
        expected, _ = torch.func.functional_call(twin, weights, (x,))
        assert torch.equal(states, expected)
        actual = torch.autograd.grad(states.sum(), list(weights.values()))
        for one, other in zip(
            actual, torch.autograd.grad(expected.sum(), list(weights.values())), strict=True
        ):
            assert torch.equal(one, other)
