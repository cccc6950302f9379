"""The first and second derivatives of the gated layer."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from geoopt_projunn.nn import OrthogonalGRU
from geoopt_projunn.nn.recurrences import passes
from tests._asserts import assert_within
from tests.nn._gated import (
    HIDDEN,
    INPUTS,
    NONLINEARITIES,
    as_torchs,
    assert_same,
    batch,
    gradients,
    loss,
    make,
    twin,
)
from tests.nn._oracles import packed_like, padded, scattered


@pytest.mark.parametrize("batch_sizes", [[2], [3] * 19, [5, 5, 4, 2, 2, 2, 1], [4] * 9 + [1] * 11])
def test_gradients_in_chunks_of_steps_are_those_of_torch(batch_sizes, monkeypatch):
    monkeypatch.setattr(passes, "_LEAST_ENTRIES", 1)
    layer = make(nonlinearity="tanh", bidirectional=True)
    x = torch.randn(sum(batch_sizes), INPUTS, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(2, batch_sizes[0], HIDDEN, dtype=torch.float64, requires_grad=True)
    packed = PackedSequence(x, torch.tensor(batch_sizes))
    for chosen in (slice(2), slice(1), slice(1, 2)):  # a loss of states, of last states, of both
        ours, theirs = (
            gradients([states.data, last][chosen], x, h0, module)
            for module in (layer, twin(layer))
            for states, last in [module(packed, h0)]
        )
        assert_same(as_torchs(ours), theirs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_second_derivatives_are_those_of_torch(given, packed):
    layer = make(2, nonlinearity="tanh", bidirectional=True)
    x, h0 = batch(layer)
    results = []
    for module in (layer, twin(layer)):
        given_x = packed_like(x) if packed else x
        states, last = module(given_x, h0) if given else module(given_x)
        first = gradients([padded(states), last], x, h0, module, create_graph=True)
        penalty = [sum(g.square().sum() for g in first.values())]
        results.append(gradients(penalty, x, h0, module))
    assert_same(as_torchs(results[0]), results[1])


@pytest.mark.parametrize(("nonlinearity", "given"), [("modrelu", True), ("relu", False)])
def test_derivatives_are_those_of_finite_differences(nonlinearity, given):
    layer = scattered(
        OrthogonalGRU(2, 3, 2, nonlinearity=nonlinearity, bidirectional=True, dtype=torch.float64)
    )
    names, values = zip(*layer.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in values]
    batch_sizes = [3, 2, 1, 1]
    x = torch.randn(sum(batch_sizes), 2, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x, h0, *values):
        weights = dict(zip(names, values, strict=True))
        packed = PackedSequence(x, torch.tensor(batch_sizes))
        states, last = torch.func.functional_call(layer, weights, (packed, h0 if given else None))
        return states.data, last

    assert torch.autograd.gradcheck(run, (x, h0, *leaves), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, h0, *leaves), fast_mode=True)


def test_what_alone_asks_for_a_gradient_gets_the_same_one():
    layer = make()
    x, h0 = batch(layer)
    expected = gradients(layer(x, h0), x, h0, layer)
    leaves = {"x": x, "h0": h0, **dict(layer.named_parameters())}
    for name, chosen in leaves.items():
        for leaf in leaves.values():
            leaf.requires_grad_(leaf is chosen)
        value = loss(layer(x, h0))
        for _ in range(2):  # what the backward pass reads it leaves as it is
            (alone,) = torch.autograd.grad(value, [chosen], retain_graph=True)
            assert_within(alone, expected[name], 1e-10)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_numbers_that_are_not_finite_are_not_hidden(nonlinearity):
    layer = make(nonlinearity=nonlinearity)
    x, h0 = batch(layer)
    x.data[2, 1, 0] = float("nan")
    states, _ = layer(x, h0)
    assert states[:2].isfinite().all()
    assert states[:, 0].isfinite().all()
    assert states[2:, 1].isnan().all()
    states.sum().backward()
    assert not layer.weight_hh_l0.grad.isfinite().any()


def test_a_change_in_place_between_the_passes_is_noticed():
    layer = make()
    x, h0 = batch(layer)
    states, _ = layer(x, h0)
    with torch.no_grad():
        states.zero_()  # a copy
        layer.bias_ih_l0.add_(1)
    torch.autograd.grad(states.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"inplace .*: bias_ih of a recurrent layer, of shape"):
        torch.autograd.grad(states.sum(), x, create_graph=True)
    with torch.no_grad():
        layer.weight_gates_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(states.sum(), x)
