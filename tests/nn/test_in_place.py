"""What a layer returns may be changed in place: the gradients are as without."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._oracles import KINDS, packed_like, scattered, wide

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")
T, N, INPUTS, HIDDEN = 6, 5, 3, 6

every_kind = pytest.mark.parametrize("kind", KINDS)
every_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)


def make(kind, *args, **options):
    options = {"init": "haar", "dtype": wide(kind), **options}
    return scattered(LAYERS[kind](INPUTS, HIDDEN, *args, **options))


def in_place(y):
    y.mul_(2)
    y[..., :2] += 1
    y[..., 3].zero_()
    return y


def out_of_place(y):
    y = 2 * y
    y = torch.cat([y[..., :2] + 1, y[..., 2:]], -1)
    return torch.cat([y[..., :3], torch.zeros_like(y[..., 3:4]), y[..., 4:]], -1)


def loss(states, last):
    return (states - 1).abs().square().sum() + (last - 2).abs().square().sum()


def gradients(run, x, leaves):
    return torch.autograd.grad(loss(*run(x)), [x, *leaves])


def changed(layer, change, which, packed=False, batch_first=False):
    def run(x):
        given = packed_like(x) if packed else x.transpose(0, 1) if batch_first else x
        states, last = layer(given)
        states = states.data if isinstance(states, PackedSequence) else states
        return (
            change(states) if "states" in which else states,
            change(last) if "last" in which else last,
        )

    return run


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert_within(a, b, 1e-10 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("which", ["states", "last", "states and last"])
@pytest.mark.parametrize("form", ["batch", "batch_first", "packed", "bidirectional", "stacked"])
@every_nonlinearity
@every_kind
def test_the_gradients_are_those_of_operations_that_copy(kind, nonlinearity, form, which):
    layer = make(
        kind,
        2 if form == "stacked" else 1,
        nonlinearity,
        bidirectional=form == "bidirectional",
        batch_first=form == "batch_first",
    )
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    forms = {"packed": form == "packed", "batch_first": form == "batch_first"}
    ours, expected = (
        gradients(changed(layer, change, which, **forms), x, layer.parameters())
        for change in (in_place, out_of_place)
    )
    assert_same(ours, expected)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_they_are_those_of_torchs_layer(nonlinearity):
    ours = make("real", 2, nonlinearity)
    theirs = torch.nn.RNN(INPUTS, HIDDEN, 2, nonlinearity).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(T, N, INPUTS, dtype=torch.float64, requires_grad=True)
    assert_same(
        *(
            gradients(changed(layer, in_place, "states and last"), x, layer.parameters())
            for layer in (ours, theirs)
        )
    )


@every_nonlinearity
@every_kind
def test_so_are_second_derivatives(kind, nonlinearity):
    layer = make(kind, 1, nonlinearity)
    x = torch.randn(3, 2, INPUTS, dtype=wide(kind), requires_grad=True)
    results = []
    for change in (in_place, out_of_place):
        states, last = changed(layer, change, "states and last")(x)
        (first,) = torch.autograd.grad(loss(states, last), x, create_graph=True)
        results.append(torch.autograd.grad(first.abs().square().sum(), list(layer.parameters())))
    assert_same(*results)


@every_kind
def test_a_change_without_gradients_leaves_those_of_what_was_computed_before(kind):
    """As with torch.nn.RNN on a CPU."""
    layer = make(kind)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    states, last = layer(x)
    value = loss(2 * states, last)
    with torch.no_grad():
        states.zero_()
        last.zero_()
    ours = torch.autograd.grad(value, [x, *layer.parameters()])
    assert_same(ours, gradients(lambda x: (2 * layer(x)[0], layer(x)[1]), x, layer.parameters()))


def by_data(t):
    t.data.mul_(5)


def by_an_array(t):
    t.detach().numpy()[:] = 7


def by_a_version_less_alias(t):
    torch.from_numpy(t.detach().numpy()).zero_()


@pytest.mark.parametrize("change", [by_data, by_an_array, by_a_version_less_alias])
@pytest.mark.parametrize("bidirectional", [False, True])
@every_nonlinearity
@every_kind
def test_so_does_a_change_that_no_version_counts(kind, nonlinearity, bidirectional, change):
    layer = make(kind, 2, nonlinearity, bidirectional=bidirectional)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    states, last = layer(x)
    value = loss(2 * states, 2 * last)
    change(states)
    change(last)
    ours = torch.autograd.grad(value, [x, *layer.parameters()])

    def without(x):
        states, last = layer(x)
        return 2 * states, 2 * last

    assert_same(ours, gradients(without, x, layer.parameters()))


@pytest.mark.parametrize("form", ["batch", "batch_first", "packed", "bidirectional", "single"])
@every_kind
def test_states_can_be_detached_in_place(kind, form):
    layer = make(kind, 2, bidirectional=form == "bidirectional", batch_first=form == "batch_first")
    x = torch.randn(*((T, INPUTS) if form == "single" else (T, N, INPUTS)), dtype=wide(kind))
    states, last = layer(packed_like(x) if form == "packed" else x)
    states = states.data if form == "packed" else states
    kept = 3 * states
    assert states.detach_() is states
    assert not states.requires_grad
    (last.abs().sum() + kept.abs().sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())


@every_kind
def test_a_second_backward_pass_finds_the_same(kind):
    layer = make(kind)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)
    value = loss(*changed(layer, in_place, "states and last")(x))
    leaves = [x, *layer.parameters()]
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    assert_same(torch.autograd.grad(value, leaves), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, leaves)


def through_checkpoint(run, x):
    return checkpoint(run, x, use_reentrant=False)


def through_hooks(run, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return run(x)


def through_arrays(run, x):
    # These come back as aliases, at version 0.
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().resolve_conj().numpy(), torch.from_numpy
    )
    with hooks:
        return run(x)


def through_copies(run, x):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        return run(x)


@pytest.mark.parametrize(
    "through", [through_checkpoint, through_hooks, through_arrays, through_copies]
)
@pytest.mark.parametrize("inside", [False, True])
@every_nonlinearity
@every_kind
def test_hooks_of_saved_tensors_change_nothing(kind, nonlinearity, inside, through):
    """Torch does not check the versions of what it gets from them."""
    layer = make(kind, 1, nonlinearity)
    x = torch.randn(T, N, INPUTS, dtype=wide(kind), requires_grad=True)

    def run(x, change):
        if inside:
            return through(changed(layer, change, "states and last"), x)
        states, last = through(layer, x)
        return change(states), change(last)

    ours, expected = (
        gradients(lambda x, change=change: run(x, change), x, layer.parameters())
        for change in (in_place, out_of_place)
    )
    assert_same(ours, expected)


@every_kind
def test_without_gradients_states_are_plain_tensors(kind):
    layer, x = make(kind), torch.randn(T, N, INPUTS, dtype=wide(kind))
    expected = layer(x)[0].detach() * 2
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert_same([layer(x)[0].mul_(2)], [expected])
