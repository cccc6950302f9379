"""A gated layer computes what torch.nn.GRU computes, and what the textbook says."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalGRU, orthogonality_errors, passes, project_
from tests._asserts import assert_unitary, assert_within
from tests.nn._gated import HIDDEN, INPUTS, as_torchs, make, textbook, twin
from tests.nn._oracles import LENGTHS, packed_like, padded, scattered

NONLINEARITIES = ("modrelu", "relu", "tanh")
T, N = max(LENGTHS), len(LENGTHS)


def batch(layer):
    x = torch.randn(T, N, INPUTS, dtype=torch.float64, requires_grad=True)
    count = layer.num_layers * (1 + layer.bidirectional)
    return x, torch.randn(count, N, HIDDEN, dtype=torch.float64, requires_grad=True)


def loss(outputs):
    """Return a generic function of outputs and last states."""
    generator = torch.Generator().manual_seed(1)
    total = 0
    for y in outputs:
        noise = torch.randn(y.shape, dtype=y.dtype, generator=generator)
        total = total + (y * noise).sum() + y.square().sum()
    return total


def gradients(outputs, x, h0, layer, **options):
    """Differentiate that by x, h0 and the parameters, by name."""
    names, leaves = zip(*layer.named_parameters(), strict=True)
    first, second, *rest = torch.autograd.grad(
        loss(outputs), [x, h0, *leaves], allow_unused=True, materialize_grads=True, **options
    )
    return {"x": first, "h0": second, **dict(zip(names, rest, strict=True))}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        assert_within(actual[name], value, 1e-10 * max(1.0, value.abs().max().item()))


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


# -- torch.nn.GRU ----------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_tanh_values_and_gradients_are_those_of_torch(num_layers, bidirectional, packed):
    for bias, given, batch_first in itertools.product((False, True), repeat=3):
        options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        assert_as_torch(make(num_layers, nonlinearity="tanh", **options), packed, given)


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


def test_a_single_sequence_is_a_batch_without_its_dimension():
    for batch_first in (False, True):
        layer = make(2, nonlinearity="tanh", batch_first=batch_first, bidirectional=True)
        theirs = twin(layer)
        x, h0 = torch.randn(T, INPUTS).double(), torch.randn(4, HIDDEN).double()
        for arguments in ((x,), (x, h0)):
            for actual, expected in zip(layer(*arguments), theirs(*arguments), strict=True):
                assert actual.shape == expected.shape
                assert_within(actual, expected, 1e-12)


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


def test_the_weights_of_torch_can_be_loaded_as_documented():
    gru = torch.nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True)
    layer = OrthogonalGRU(INPUTS, HIDDEN, 2, bidirectional=True, nonlinearity="tanh")
    n = layer.hidden_size
    state = gru.state_dict()
    for name in [name for name in state if name.startswith("weight_hh")]:
        gates, state[name] = state[name].split([2 * n, n])
        state[name.replace("hh", "gates")] = gates
    layer.load_state_dict(state)
    x = torch.randn(T, N, INPUTS)
    assert_within(layer(x)[0], gru(x)[0], 1e-5)
    assert max(orthogonality_errors(layer).values()) > 0.1
    assert max(orthogonality_errors(project_(layer)).values()) < 1e-5


# -- the textbook ----------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
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


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_sequences_of_a_packed_batch_do_not_see_each_other(nonlinearity):
    layer = make(2, nonlinearity=nonlinearity, bidirectional=True)
    sequences = [torch.randn(length, INPUTS).double() for length in LENGTHS]
    h0 = torch.randn(4, N, HIDDEN).double()
    states, last = layer(pack_sequence(sequences, enforce_sorted=False), h0)
    for i, sequence in enumerate(sequences):
        alone, alone_last = layer(sequence, h0[:, i])
        assert_within(padded(states)[: len(sequence), i], alone, 1e-12)
        assert_within(last[:, i], alone_last, 1e-12)


@pytest.mark.parametrize(
    ("nonlinearity", "given"), [("modrelu", True), ("relu", False), ("tanh", True)]
)
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


# -- parameters ------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_names_and_shapes_of_the_state_dict(nonlinearity):
    for bias, bidirectional in itertools.product((False, True), repeat=2):
        options = {"bias": bias, "bidirectional": bidirectional}
        expected = torch.nn.GRU(INPUTS, HIDDEN, 2, **options).state_dict()
        ours = make(2, nonlinearity=nonlinearity, **options)
        state = ours.state_dict()
        for name in [name for name in expected if name.startswith("weight_hh")]:
            assert state[name].shape == (HIDDEN, HIDDEN)
            assert state[name.replace("hh", "gates")].shape == (2 * HIDDEN, HIDDEN)
            if nonlinearity == "modrelu":
                assert state.pop(name.replace("weight_hh", "offset")).shape == (HIDDEN,)
        shapes = {name: value.shape for name, value in as_torchs(state).items()}
        assert shapes == {name: value.shape for name, value in expected.items()}
        known = {id(p) for weights in ours.all_weights for p in weights}
        offsets = {id(p) for name, p in ours.named_parameters() if name.startswith("offset")}
        assert known == {id(p) for p in ours.parameters()} - offsets


def test_the_orthogonal_weights_alone_are_on_the_manifold_of_the_arguments():
    layer = make(2, bidirectional=True, k=2, retraction="polar", sketch="lsi")
    manifold = LowRankUnitary(2, retraction="polar", sketch="lsi")
    for name, p in layer.named_parameters():
        on_it = name.startswith("weight_hh")
        assert getattr(p, "manifold", None) == (manifold if on_it else None)
        if on_it:
            assert_unitary(p.detach())


def test_everything_else_starts_as_documented():
    layer = OrthogonalGRU(200, 300)
    for name, inputs in (("weight_ih_l0", 200), ("weight_gates_l0", 300)):
        for part in getattr(layer, name).detach().split(300):
            variance = 2 / (inputs + 300)
            assert part.square().mean().item() == pytest.approx(variance, rel=0.03)
            assert part.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=0.01)
    for name in ("bias_ih_l0", "bias_hh_l0", "offset_l0"):
        assert not getattr(layer, name).any()


def test_reset_parameters_repeats_the_construction():
    torch.manual_seed(5)
    layer = OrthogonalGRU(3, 8, 2, init="haar")
    first = {name: p.clone() for name, p in layer.state_dict().items()}
    for p in layer.parameters():
        p.data.fill_(7)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in layer.state_dict().items())


def test_training_moves_every_parameter_and_stays_on_the_manifold():
    layer = OrthogonalGRU(INPUTS, HIDDEN, 2, bidirectional=True)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = ProjUNNRiemannianAdam(layer.parameters(), lr=0.05)
    x = torch.randn(T, N, INPUTS)
    for _ in range(30):
        optimizer.zero_grad()
        (layer(x)[0] - 0.1).square().sum().backward()
        optimizer.step()
    assert max(orthogonality_errors(layer, exact=True).values()) < 1e-5
    assert not any(torch.equal(p, before[name]) for name, p in layer.named_parameters())


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


def test_the_states_stay_in_the_parameters_precision_under_autocast():
    layer = OrthogonalGRU(3, 8, 2)
    x = torch.randn(4, 2, 3)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
        assert layer(x.bfloat16())[0].dtype == torch.float32
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_it_says_what_it_is():
    layer = OrthogonalGRU(3, 8, 2, batch_first=True, k=2, retraction="polar", init="haar")
    assert repr(layer) == (
        "OrthogonalGRU(3, 8, num_layers=2, batch_first=True, nonlinearity=modrelu, k=2, "
        "retraction=polar, sketch=tangent, init=haar)"
    )
    assert isinstance(layer, torch.nn.GRU)
