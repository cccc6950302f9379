"""The layers compute what torch.nn.RNN computes, and what the textbook says."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_unitary, assert_within
from tests.nn._oracles import (
    KINDS,
    LENGTHS,
    packed_like,
    padded,
    real_embedding,
    scattered,
    textbook,
    wide,
)

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")
T, N, INPUTS, HIDDEN = max(LENGTHS), len(LENGTHS), 3, 6


def make(kind, *args, **options):
    options = {"init": "haar", "dtype": wide(kind), **options}
    return scattered(LAYERS[kind](INPUTS, HIDDEN, *args, **options))


def gradients(outputs, leaves):
    """Differentiate a generic real function of outputs and last states."""
    loss = 0
    generator = torch.Generator().manual_seed(1)
    for output in outputs:
        noise = torch.randn(output.shape, dtype=output.dtype, generator=generator)
        loss = loss + (output * noise).real.sum()
    return torch.autograd.grad(loss, leaves)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert_within(a, b, 1e-10)


# -- torch.nn.RNN ----------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
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


# -- the textbook ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
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
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_sequences_of_a_packed_batch_do_not_see_each_other(kind, nonlinearity):
    layer = make(kind, 2, nonlinearity, bidirectional=True)
    sequences = [torch.randn(length, INPUTS, dtype=wide(kind)) for length in LENGTHS]
    h0 = torch.randn(4, N, HIDDEN, dtype=wide(kind))
    states, last = layer(pack_sequence(sequences, enforce_sorted=False), h0)
    for i, sequence in enumerate(sequences):
        alone, alone_last = layer(sequence, h0[:, i])
        assert_same((padded(states)[: len(sequence), i], last[:, i]), (alone, alone_last))


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
@pytest.mark.parametrize("batch_sizes", [[2, 2, 2], [3, 2, 1, 1]])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_are_those_of_finite_differences(kind, nonlinearity, batch_sizes, given):
    layer = scattered(
        LAYERS[kind](2, 3, 2, nonlinearity, bidirectional=True, dtype=wide(kind), init="haar")
    )
    names, values = zip(*layer.named_parameters(), strict=True)
    leaves = [value.detach().clone().requires_grad_() for value in values]
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
def test_only_what_asks_for_a_gradient_gets_one(kind):
    layer = make(kind)
    layer.requires_grad_(False)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind))
    assert not layer(x)[0].requires_grad
    layer.weight_hh_l0.requires_grad_(True)
    layer(x)[0].abs().sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["weight_hh_l0"]


def test_the_input_and_h0_are_left_alone():
    layer = make("real", 2)
    x, h0 = torch.randn(T, N, INPUTS).double(), torch.randn(2, N, HIDDEN).double()
    before = x.clone(), h0.clone()
    layer(x, h0)
    layer(x[:, :, :], h0)[0].sum().backward()
    assert torch.equal(x, before[0])
    assert torch.equal(h0, before[1])


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


# -- parameters ------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_names_and_shapes_of_the_state_dict_are_torchs(num_layers, bidirectional, bias):
    options = {"bidirectional": bidirectional, "bias": bias}
    theirs = torch.nn.RNN(INPUTS, HIDDEN, num_layers, **options).state_dict()
    expected = {name: p.shape for name, p in theirs.items()}
    for kind, nonlinearity in itertools.product(KINDS, NONLINEARITIES):
        ours = make(kind, num_layers, nonlinearity, **options)
        shapes = {name: p.shape for name, p in ours.state_dict().items()}
        offsets = {name: shapes.pop(name) for name in list(shapes) if name.startswith("offset")}
        assert shapes == expected
        assert set(offsets) == (
            {name.replace("weight_hh", "offset") for name in expected if "weight_hh" in name}
            if nonlinearity == "modrelu"
            else set()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_weights_alone_are_on_the_manifold_of_the_arguments(kind):
    layer = make(kind, 2, bidirectional=True, k=2, retraction="polar", sketch="lsi")
    manifold = LowRankUnitary(2, retraction="polar", sketch="lsi")
    for name, p in layer.named_parameters():
        assert getattr(p, "manifold", None) == (manifold if "weight_hh" in name else None)
        if "weight_hh" in name:
            assert_unitary(p.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_starts_as_documented(kind):
    layer = LAYERS[kind](200, 300)
    weight = layer.weight_ih_l0.detach()
    assert weight.abs().square().mean().item() == pytest.approx(2 / 500, rel=0.02)
    parts = [weight.real, weight.imag] if weight.is_complex() else [weight]
    for part in parts:
        assert part.abs().max().item() == pytest.approx((6 / 500 / len(parts)) ** 0.5, rel=0.01)
    for name in ("bias_ih_l0", "bias_hh_l0", "offset_l0"):
        assert not getattr(layer, name).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["henaff", "cayley", "identity", "haar"])
def test_reset_parameters_repeats_the_construction(kind, init):
    torch.manual_seed(5)
    layer = LAYERS[kind](3, 8, 2, init=init)
    first = {name: p.clone() for name, p in layer.state_dict().items()}
    for p in layer.parameters():
        p.data.fill_(7)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in layer.state_dict().items())


def test_a_new_modrelu_layer_keeps_the_norm_of_its_state():
    for kind in KINDS:
        layer = LAYERS[kind](3, 64, dtype=wide(kind))
        h0 = torch.randn(1, 2, 64, dtype=wide(kind))
        _, last = layer(torch.zeros(500, 2, 3, dtype=wide(kind)), h0)
        assert_within(last.norm(dim=-1), h0.norm(dim=-1), 1e-10)


def test_the_default_dtypes_follow_torchs():
    assert OrthogonalRNN(2, 4).weight_hh_l0.dtype == torch.float32
    assert UnitaryRNN(2, 4).weight_hh_l0.dtype == torch.complex64
    torch.set_default_dtype(torch.float64)
    try:
        assert OrthogonalRNN(2, 4).offset_l0.dtype == torch.float64
        assert UnitaryRNN(2, 4).weight_hh_l0.dtype == torch.complex128
        assert UnitaryRNN(2, 4).offset_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_stay_in_the_parameters_precision_under_autocast(kind):
    layer = LAYERS[kind](3, 8, 2)
    x = torch.randn(4, 2, 3)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
        assert layer(x.bfloat16())[0].dtype == layer.weight_hh_l0.dtype
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_it_says_what_it_is():
    layer = OrthogonalRNN(3, 8, 2, batch_first=True, k=2, retraction="polar", init="haar")
    assert repr(layer) == (
        "OrthogonalRNN(3, 8, num_layers=2, batch_first=True, nonlinearity=modrelu, k=2, "
        "retraction=polar, sketch=tangent, init=haar)"
    )
    assert isinstance(layer, torch.nn.RNN)
