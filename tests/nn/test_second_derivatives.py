"""Second derivatives of recurrent layers are right, whatever the loss."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._oracles import KINDS, LENGTHS, packed_like, padded, scattered, textbook, wide

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")
T, N, INPUTS, HIDDEN = max(LENGTHS), len(LENGTHS), 3, 6
# Of sum and mean, the first gradient does not depend on the states.
LOSSES = {
    "sum": lambda states, last: states.real.sum() + 2 * last.real.sum(),
    "mean": lambda states, last: states.real.mean(),
    "last": lambda states, last: last.real.sum(),
    "squares": lambda states, last: (states - 1).abs().square().sum() + last.abs().square().sum(),
}


def make(kind, *args, **options):
    options = {"init": "haar", "dtype": wide(kind), **options}
    return scattered(LAYERS[kind](INPUTS, HIDDEN, *args, **options))


def second(run, x, h0, leaves, loss):
    """Return the first gradient and the gradients of its squared norm."""
    leaves = [x, *([] if h0 is None else [h0]), *leaves]
    states, last = run(x, h0)
    first = torch.autograd.grad(
        loss(padded(states), last), leaves, create_graph=True, allow_unused=True
    )
    penalty = sum(g.abs().square().sum() for g in first if g is not None)
    second = torch.autograd.grad(penalty, leaves, allow_unused=True)
    return [torch.zeros(()) if g is None else g.detach() for g in (*first, *second)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert_within(a, b, 1e-8 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_they_are_those_of_torch(nonlinearity, bidirectional, packed, loss):
    for num_layers, given, bias in itertools.product((1, 2), (False, True), (False, True)):
        options = {"bidirectional": bidirectional, "bias": bias}
        ours = make("real", num_layers, nonlinearity, **options)
        theirs = torch.nn.RNN(INPUTS, HIDDEN, num_layers, nonlinearity, **options).double()
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(T, N, INPUTS).double().requires_grad_()
        h0 = torch.randn(num_layers * (1 + bidirectional), N, HIDDEN).double().requires_grad_()
        results = [
            second(
                lambda x, h0, layer=layer: layer(packed_like(x) if packed else x, h0),
                *(x, h0 if given else None),
                *(list(layer.parameters()), LOSSES[loss]),
            )
            for layer in (ours, theirs)
        ]
        assert_same(*results)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_textbooks_loop(kind, nonlinearity, bidirectional, loss):
    layer = make(kind, 2, nonlinearity, bidirectional=bidirectional)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    h0 = torch.randn(2 * (1 + bidirectional), N, HIDDEN, dtype=wide(kind), requires_grad=True)
    arguments = (x, h0, list(layer.parameters()), LOSSES[loss])
    expected = second(lambda x, h0: textbook(layer, x, h0), *arguments)
    assert_same(second(layer, *arguments), expected)
    first = torch.autograd.grad(
        LOSSES[loss](*layer(x, h0)), [x, h0, *layer.parameters()], allow_unused=True
    )
    first = [torch.zeros(()) if g is None else g for g in first]
    assert_same(first, expected[: len(first)])


@pytest.mark.parametrize("batch_sizes", [[2, 2], [3, 2, 1]])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_finite_differences(kind, nonlinearity, batch_sizes):
    layer = LAYERS[kind](
        *(2, 3, 2, nonlinearity), dropout=0.3, bidirectional=True, dtype=wide(kind), init="haar"
    )
    scattered(layer)
    names, values = zip(*layer.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in values]
    x = torch.randn(sum(batch_sizes), 2, dtype=wide(kind), requires_grad=True)
    h0 = torch.randn(4, batch_sizes[0], 3, dtype=wide(kind), requires_grad=True)

    def run(x, h0, *values):
        torch.manual_seed(3)  # one mask of dropout
        weights = dict(zip(names, values, strict=True))
        packed = PackedSequence(x, torch.tensor(batch_sizes))
        states, last = torch.func.functional_call(layer, weights, (packed, h0))
        return states.data, last

    assert torch.autograd.gradgradcheck(run, (x, h0, *leaves), fast_mode=True)


def test_an_input_that_depends_on_a_weight_is_not_counted_twice():
    layer, theirs = make("real", nonlinearity="tanh"), torch.nn.RNN(INPUTS, HIDDEN).double()
    theirs.load_state_dict(layer.state_dict())
    results = []
    for rnn in (layer, theirs):
        x = rnn.weight_ih_l0[:5].unsqueeze(1) * 2
        (first,) = torch.autograd.grad(rnn(x)[0].sum(), rnn.weight_ih_l0, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), list(rnn.parameters())))
    assert_same(*results)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_has_finite_ones_where_its_state_is_zero(kind, nonlinearity):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity)
    for offset in (-0.1, 0.0, 0.1):
        if nonlinearity == "modrelu":
            torch.nn.init.constant_(layer.offset_l0, offset)
        x = torch.zeros(3, 2, INPUTS, requires_grad=True)
        derivatives = second(layer, x, None, list(layer.parameters()), LOSSES["squares"])
        assert all(g.isfinite().all() for g in derivatives)


@pytest.mark.parametrize("kind", KINDS)
def test_third_derivatives_are_right_as_well(kind):
    layer = make(kind, 1, "tanh")
    x = torch.randn(3, 2, INPUTS, dtype=wide(kind), requires_grad=True)
    h0 = torch.zeros(1, 2, HIDDEN, dtype=wide(kind))
    results = []
    for run in (layer, lambda x: textbook(layer, x, h0)):
        value = run(x)[0].real.sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.abs().square().sum()
        results.append(torch.autograd.grad(value, list(layer.parameters()), allow_unused=True))
    assert_same(*([torch.zeros(()) if g is None else g for g in r] for r in results))
