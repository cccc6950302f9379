"""The gradients of the layers: by what, of what, and where numbers are not finite."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tests.nn._oracles import (
    KINDS,
    scattered,
    textbook,
    wide,
)
from tests.nn._rnn import HIDDEN, INPUTS, LAYERS, NONLINEARITIES, N, T, assert_same, gradients, make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(1,), (4, 4), (5, 1), (7, 5, 5, 2, 1, 1), (2, 3, 9)], ids=str)
def test_gradients_of_a_packed_batch_are_the_sums_of_its_sequences(kind, lengths):
    layer = make(kind, 1, bidirectional=True)
    sequences = [torch.randn(length, INPUTS, dtype=wide(kind)) for length in lengths]
    h0 = torch.randn(2, len(lengths), HIDDEN, dtype=wide(kind))

    def loss(states, last):
        return (states - 1).abs().square().sum() + (last - 2).abs().square().sum()

    packed, last = layer(pack_sequence(sequences, enforce_sorted=False), h0)
    whole = torch.autograd.grad(loss(packed.data, last), list(layer.parameters()))
    alone = sum(loss(*layer(x, h0[:, i])) for i, x in enumerate(sequences))
    assert_same(whole, torch.autograd.grad(alone, list(layer.parameters())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("given", [False, True])
def test_gradients_are_those_of_finite_differences(kind, nonlinearity, given):
    layer = scattered(
        LAYERS[kind](2, 3, 2, nonlinearity, bidirectional=True, dtype=wide(kind), init="haar")
    )
    names, values = zip(*layer.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in values]
    batch_sizes = [3, 2, 1, 1]
    x = torch.randn(sum(batch_sizes), 2, dtype=wide(kind), requires_grad=True)
    h0 = torch.randn(4, batch_sizes[0], 3, dtype=wide(kind), requires_grad=True)

    def run(x, h0, *values):
        weights = dict(zip(names, values, strict=True))
        packed = PackedSequence(x, torch.tensor(batch_sizes))
        states, last = torch.func.functional_call(layer, weights, (packed, h0 if given else None))
        return states.data, last

    assert torch.autograd.gradcheck(run, (x, h0, *leaves))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_loss_of_states_or_of_last_states_alone_is_enough(kind, nonlinearity, which):
    layer = make(kind, 1, nonlinearity, bidirectional=True)
    x, h0 = torch.randn(T, N, INPUTS, dtype=wide(kind)), torch.zeros(2, N, HIDDEN, dtype=wide(kind))
    ours = gradients([layer(x)[which]], list(layer.parameters()))
    assert_same(ours, gradients([textbook(layer, x, h0)[which]], list(layer.parameters())))


@pytest.mark.parametrize("kind", KINDS)
def test_what_alone_asks_for_a_gradient_gets_the_same_one(kind):
    layer = make(kind)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind))
    h0 = torch.randn(1, N, HIDDEN, dtype=wide(kind))
    leaves = {"x": x, "h0": h0, **dict(layer.named_parameters())}
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    expected = gradients(layer(x, h0), list(leaves.values()))
    layer.requires_grad_(False)
    assert not layer(x.detach(), h0.detach())[0].requires_grad
    for chosen, value in zip(leaves.values(), expected, strict=True):
        for leaf in leaves.values():
            leaf.requires_grad_(leaf is chosen)
        assert_same(gradients(layer(x, h0), [chosen]), [value])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_hidden(kind, nonlinearity, bad):
    layer = make(kind, 1, nonlinearity)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind))
    x[2, 1, 0] = bad
    states, _ = layer(x)
    assert states[:2].isfinite().all()
    assert states[:, 0].isfinite().all()
    if nonlinearity != "tanh" or bad != bad:
        assert not states[2, 1].isfinite().all()
        states.abs().sum().backward()
        assert not layer.weight_hh_l0.grad.isfinite().all()
