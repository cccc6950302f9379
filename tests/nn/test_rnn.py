"""The layers compute what torch.nn.RNN computes, and what the textbook says."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from geoopt_projunn.nn import OrthogonalRNN
from tests._asserts import assert_within
from tests.nn._oracles import (
    KINDS,
    LENGTHS,
    packed_like,
    padded,
    real_embedding,
    textbook,
    wide,
)
from tests.nn._rnn import HIDDEN, INPUTS, LAYERS, NONLINEARITIES, N, T, assert_same, gradients, make


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_values_and_gradients_are_those_of_torch(
    nonlinearity, num_layers, bidirectional, batch_first, packed, fused, monkeypatch
):
    """On both paths: this package's recurrence, and torch's kernels, which a GPU uses."""
    monkeypatch.setattr(OrthogonalRNN, "_fused", fused)
    for bias, given in itertools.product((False, True), repeat=2):
        options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        ours = make("real", num_layers, nonlinearity, **options)
        theirs = torch.nn.RNN(
            INPUTS, HIDDEN, num_layers, nonlinearity, dtype=torch.float64, **options
        )
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(T, N, INPUTS, dtype=torch.float64, requires_grad=True)
        h0 = torch.randn(
            num_layers * (1 + bidirectional), N, HIDDEN, dtype=torch.float64, requires_grad=True
        )
        results = []
        for layer in (ours, theirs):
            given_x = packed_like(x) if packed else x.transpose(0, 1) if batch_first else x
            states, last = layer(given_x, h0) if given else layer(given_x)
            assert isinstance(states, PackedSequence) == packed
            outputs = (padded(states), last)
            leaves = [x, *([h0] if given else []), *layer.parameters()]
            results.append((*outputs, *gradients(outputs, leaves)))
        assert_same(*results)


@pytest.mark.parametrize("fused", [False, True])
def test_a_single_sequence_is_a_batch_without_its_dimension(fused, monkeypatch):
    monkeypatch.setattr(OrthogonalRNN, "_fused", fused)
    for batch_first in (False, True):
        ours = make("real", 2, "tanh", batch_first=batch_first, bidirectional=True)
        theirs = torch.nn.RNN(
            INPUTS, HIDDEN, 2, batch_first=batch_first, bidirectional=True, dtype=torch.float64
        )
        theirs.load_state_dict(ours.state_dict())
        x, h0 = torch.randn(T, INPUTS).double(), torch.randn(4, HIDDEN).double()
        assert_same(ours(x, h0), theirs(x, h0))
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_a_complex_layer_is_a_real_one_of_twice_the_size(
    nonlinearity, num_layers, bidirectional, packed
):
    ours = make("complex", num_layers, nonlinearity, bidirectional=bidirectional)
    theirs = torch.nn.RNN(
        2 * INPUTS,
        2 * HIDDEN,
        num_layers,
        nonlinearity,
        bidirectional=bidirectional,
        dtype=torch.float64,
    )
    real_embedding(ours, theirs)
    x = torch.randn(T, N, INPUTS, dtype=torch.complex128, requires_grad=True)
    h0 = torch.randn(num_layers * (1 + bidirectional), N, HIDDEN, dtype=torch.complex128)
    h0.requires_grad_()

    def twice(z):
        return torch.cat([z.real, z.imag], -1)

    states, last = ours(packed_like(x) if packed else x, h0)
    doubled, doubled_last = theirs(packed_like(twice(x)) if packed else twice(x), twice(h0))
    by_direction = padded(states).unflatten(-1, (1 + bidirectional, HIDDEN))
    outputs = (twice(by_direction).flatten(-2), twice(last))
    expected = (padded(doubled), doubled_last)
    assert_same(
        (*outputs, *gradients(outputs, [x, h0])), (*expected, *gradients(expected, [x, h0]))
    )


@pytest.mark.parametrize(
    ("kind", "nonlinearity"),  # real ones of relu and tanh are torch's, above
    [("real", "modrelu"), *(("complex", name) for name in NONLINEARITIES)],
)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_textbooks_loop(kind, nonlinearity, bidirectional, bias):
    layer = make(kind, 2, nonlinearity, bias=bias, bidirectional=bidirectional)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    h0 = torch.randn(2 * (1 + bidirectional), N, HIDDEN, dtype=wide(kind), requires_grad=True)
    leaves = [x, h0, *layer.parameters()]
    ours, expected = layer(x, h0), textbook(layer, x, h0)
    assert_same((*ours, *gradients(ours, leaves)), (*expected, *gradients(expected, leaves)))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_a_packed_batch_do_not_see_each_other(kind):
    layer = make(kind, 2, "modrelu", bidirectional=True)
    sequences = [torch.randn(length, INPUTS, dtype=wide(kind)) for length in LENGTHS]
    h0 = torch.randn(4, N, HIDDEN, dtype=wide(kind))
    states, last = layer(pack_sequence(sequences, enforce_sorted=False), h0)
    for i, sequence in enumerate(sequences):
        alone, alone_last = layer(sequence, h0[:, i])
        assert_same((padded(states)[: len(sequence), i], last[:, i]), (alone, alone_last))


@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_the_input_change_nothing_but_the_form(kind):
    for options in ({}, {"bidirectional": True}):
        first, second = (make(kind, 2, batch_first=flag, **options) for flag in (False, True))
        second.load_state_dict(first.state_dict())
        x = torch.randn(T, N, INPUTS, dtype=wide(kind))
        states, last = first(x)
        turned, turned_last = second(x.transpose(0, 1))
        single, single_last = first(x[:, 0])
        assert_same((turned.transpose(0, 1), turned_last), (states, last))
        assert_same((single, single_last), (states[:, 0], last[:, 0]))


def test_real_input_of_a_unitary_layer_is_complex_input_without_imaginary_part():
    layer = make("complex", 2)
    x, h0 = torch.randn(T, N, INPUTS).double(), torch.randn(2, N, HIDDEN).double()
    expected = layer(x.to(torch.complex128), h0.to(torch.complex128))
    assert_same(layer(x, h0), expected)
    packed, last = layer(packed_like(x), h0)
    assert_same((padded(packed), last), [padded(y) for y in layer(packed_like(x + 0j), h0)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_the_input_and_h0_are_left_alone(kind, nonlinearity):
    layer = make(kind, 2, nonlinearity)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind))
    h0 = torch.randn(2, N, HIDDEN, dtype=wide(kind))
    before = x.clone(), h0.clone()
    layer(x, h0)[0].abs().sum().backward()
    with torch.no_grad():
        layer(x, h0)
    assert torch.equal(x, before[0])
    assert torch.equal(h0, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_lies_between_layers_and_is_off_in_evaluation(kind):
    options = {"bias": False, "dtype": wide(kind)}
    plain, layer = LAYERS[kind](3, 6, 2, **options), LAYERS[kind](3, 6, 2, dropout=0.25, **options)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 1, 3, dtype=wide(kind)).expand(1, 5000, 3)
    expected = plain(x)
    assert_same(layer.eval()(x), expected)
    # A modReLU without offset is the identity: solve for what the second layer was given.
    _, (first, second) = layer.train()(x)
    assert_within(first, expected[1][0], 1e-10)
    ratio = torch.linalg.solve(layer.weight_ih_l1, second.mT).mT / first
    kept = ratio.abs() > 0.5
    assert_within(ratio, kept.double() / 0.75, 1e-8)
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)
