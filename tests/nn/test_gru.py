"""The gated layer computes what torch.nn.GRU computes, and what the textbook says."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from geoopt_projunn.nn import OrthogonalGRU
from tests._asserts import assert_within
from tests.nn._gated import (
    HIDDEN,
    INPUTS,
    N,
    T,
    as_torchs,
    assert_same,
    batch,
    gradients,
    make,
    textbook,
    twin,
)
from tests.nn._oracles import LENGTHS, packed_like, padded


def assert_as_torch(layer, packed, given, **options):
    x, h0 = batch(layer)
    results = []
    for module in (layer, twin(layer)):
        given_x = packed_like(x) if packed else x.transpose(0, 1) if module.batch_first else x
        states, last = module(given_x, h0) if given else module(given_x)
        assert isinstance(states, PackedSequence) == packed
        outputs = padded(states), last
        found = gradients(outputs, x, h0, module, **options)
        results.append({"states": outputs[0], "last": last, **found})
    ours, theirs = results
    assert_same(as_torchs(ours), theirs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_tanh_values_and_gradients_are_those_of_torch(num_layers, bidirectional, packed):
    for bias, given, batch_first in itertools.product((False, True), repeat=3):
        options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        assert_as_torch(make(num_layers, nonlinearity="tanh", **options), packed, given)


def test_a_single_sequence_is_a_batch_without_its_dimension():
    for batch_first in (False, True):
        layer = make(2, nonlinearity="tanh", batch_first=batch_first, bidirectional=True)
        theirs = twin(layer)
        x, h0 = torch.randn(T, INPUTS).double(), torch.randn(4, HIDDEN).double()
        for arguments in ((x,), (x, h0)):
            for actual, expected in zip(layer(*arguments), theirs(*arguments), strict=True):
                assert actual.shape == expected.shape
                assert_within(actual, expected, 1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])  # tanh is torch's, above
def test_it_is_the_textbooks_loop(nonlinearity, bias):
    layer = make(2, nonlinearity=nonlinearity, bias=bias, bidirectional=True)
    x, h0 = batch(layer)
    results = []
    for run in (layer, lambda x, h0: textbook(layer, x, h0)):
        outputs = run(x, h0)
        first = gradients(outputs, x, h0, layer, create_graph=True)
        second = gradients([sum(g.square().sum() for g in first.values())], x, h0, layer)
        results += [dict(zip(("states", "last"), outputs, strict=True)) | first, second]
    first, second, expected_first, expected_second = results
    assert_same(first, expected_first)
    assert_same(second, expected_second)
    assert_same(gradients(layer(x, h0), x, h0, layer), {n: first[n] for n in second})


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu"])
def test_sequences_of_a_packed_batch_do_not_see_each_other(nonlinearity):
    layer = make(2, nonlinearity=nonlinearity, bidirectional=True)
    sequences = [torch.randn(length, INPUTS).double() for length in LENGTHS]
    h0 = torch.randn(4, N, HIDDEN).double()
    states, last = layer(pack_sequence(sequences, enforce_sorted=False), h0)
    for i, sequence in enumerate(sequences):
        alone, alone_last = layer(sequence, h0[:, i])
        assert_within(padded(states)[: len(sequence), i], alone, 1e-12)
        assert_within(last[:, i], alone_last, 1e-12)


def test_dropout_lies_between_layers_and_is_off_in_evaluation():
    layer, plain = make(2, dropout=0.25), make(2)
    plain.load_state_dict(layer.state_dict())
    x, h0 = batch(layer)
    assert torch.equal(layer.eval()(x, h0)[0], plain(x, h0)[0])
    lower, upper = make(), OrthogonalGRU(HIDDEN, HIDDEN, dtype=torch.float64)
    for number, one in enumerate((lower, upper)):
        state = {name: p for name, p in layer.state_dict().items() if f"_l{number}" in name}
        one.load_state_dict({name.replace("_l1", "_l0"): p for name, p in state.items()})
    torch.manual_seed(3)
    states, last = layer.train()(x, h0)
    between, lower_last = lower(x, h0[:1])
    torch.manual_seed(3)
    expected, upper_last = upper(torch.nn.functional.dropout(between, 0.25), h0[1:])
    assert_within(states, expected, 1e-12)
    assert_within(last, torch.cat([lower_last, upper_last]), 1e-12)
