"""Gradients that are propagated back in chunks of steps are those of one chunk, and of torch."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from geoopt_projunn.nn.recurrences import passes
from tests._asserts import assert_within
from tests.nn._oracles import KINDS, scattered, textbook, wide

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
INPUTS, HIDDEN = 3, 6
# From one step to several in each chunk, also with a rest; the last end at different times.
BATCH_SIZES = ([2], [2] * 7, [3] * 16, [2] * 19, [5, 5, 4, 2, 2, 2, 2, 2, 1], [4] * 9 + [1] * 11)
LOSSES = {
    "states": lambda states, last: (states - 1).abs().square().sum(),
    "sum": lambda states, last: states.real.sum(),
    "last": lambda states, last: (last - 2).abs().square().sum(),
    "both": lambda states, last: (states * 3).abs().square().sum() + last.real.sum(),
}

every_batch = pytest.mark.parametrize("batch_sizes", BATCH_SIZES, ids=str)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture
def chunks(monkeypatch):
    """Make chunks of short sequences as well, and return the sizes of those that were made."""
    sizes = []
    made = passes.Pass._chunks

    def record(self):
        chunks = made(self)
        sizes.append([len(chunk.batch_sizes) for chunk in chunks])
        return chunks

    monkeypatch.setattr(passes, "_LEAST_ENTRIES", 1)
    monkeypatch.setattr(passes.Pass, "_chunks", record)
    return sizes


def arguments(layer, batch_sizes):
    directions = 2 if layer.bidirectional else 1
    dtype = layer.weight_hh_l0.dtype
    x = torch.randn(sum(batch_sizes), INPUTS, dtype=dtype, requires_grad=True)
    h0 = torch.randn(directions, batch_sizes[0], HIDDEN, dtype=dtype, requires_grad=True)
    return x, h0


def gradients(layer, x, h0, batch_sizes, loss):
    states, last = layer(PackedSequence(x, torch.tensor(batch_sizes)), h0)
    leaves = [x, h0, *layer.parameters()]
    return torch.autograd.grad(LOSSES[loss](states.data, last), leaves, allow_unused=True)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert_within(a, b, 1e-10 * max(1.0, b.abs().max().item()))


@every_loss
@every_batch
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_they_are_those_of_torch(nonlinearity, batch_sizes, loss, chunks):
    layer = OrthogonalRNN(INPUTS, HIDDEN, 1, nonlinearity, bidirectional=True, dtype=torch.float64)
    theirs = torch.nn.RNN(INPUTS, HIDDEN, 1, nonlinearity, bidirectional=True).double()
    theirs.load_state_dict(scattered(layer).state_dict())
    x, h0 = arguments(layer, batch_sizes)
    ours = gradients(layer, x, h0, batch_sizes, loss)
    assert_same(ours, gradients(theirs, x, h0, batch_sizes, loss))
    assert all(sum(sizes) == len(batch_sizes) for sizes in chunks)
    assert min(map(len, chunks)) > 1 or len(batch_sizes) == 1


@every_loss
@every_batch
@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_one_chunk(kind, nonlinearity, batch_sizes, loss, chunks, monkeypatch):
    layer = LAYERS[kind](INPUTS, HIDDEN, 1, nonlinearity, bidirectional=True, dtype=wide(kind))
    x, h0 = arguments(scattered(layer), batch_sizes)
    ours = gradients(layer, x, h0, batch_sizes, loss)
    monkeypatch.setattr(passes, "_LEAST_ENTRIES", 10**9)
    assert_same(ours, gradients(layer, x, h0, batch_sizes, loss))
    assert chunks[-1] == [len(batch_sizes)]


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_textbooks_loop(kind, nonlinearity, chunks):
    layer = LAYERS[kind](INPUTS, HIDDEN, 2, nonlinearity, bidirectional=True, dtype=wide(kind))
    x = torch.randn(19, 2, INPUTS, dtype=wide(kind), requires_grad=True)
    h0 = torch.randn(4, 2, HIDDEN, dtype=wide(kind), requires_grad=True)
    leaves = [x, h0, *scattered(layer).parameters()]
    ours, expected = (
        torch.autograd.grad(LOSSES["both"](*run), leaves)
        for run in (layer(x, h0), textbook(layer, x, h0))
    )
    assert_same(ours, expected)
    assert min(map(len, chunks)) > 1
