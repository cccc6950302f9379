"""Arguments that change in place between forward and backward pass: right gradients or an error.

Whatever no gradient depends on may change, as with torch.nn.RNN.
"""

import pytest
import torch

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._oracles import KINDS, padded, scattered, wide

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")
T, N, INPUTS, HIDDEN = 6, 5, 3, 6

every_kind = pytest.mark.parametrize("kind", KINDS)
every_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)


def make(kind, *args):
    return scattered(LAYERS[kind](INPUTS, HIDDEN, *args, init="haar", dtype=wide(kind)))


def loss(states, last):
    return (states - 1).abs().square().sum() + (last - 2).abs().square().sum()


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert_within(a, b, 1e-10 * max(1.0, b.abs().max().item()))


def training(rnn, only):
    """Let only the parameters whose names start so be trained."""
    for name, p in rnn.named_parameters():
        p.requires_grad_(name.startswith(only))
    return rnn


def after_a_change(rnn, change, **options):
    """Return the gradients of a backward pass after a change of the arguments."""
    torch.manual_seed(1)
    x = torch.randn(T, N, INPUTS, dtype=rnn.weight_ih_l0.dtype)
    h0 = torch.randn(1, N, HIDDEN, dtype=rnn.weight_ih_l0.dtype)
    arguments = {"x": x, "h0": h0, **dict(rnn.named_parameters())}
    leaves = [p for p in rnn.parameters() if p.requires_grad]
    value = loss(*rnn(x, h0))
    if change is not None:
        with torch.no_grad():
            arguments[change].add_(1)
    found = torch.autograd.grad(value, leaves, **options)
    if change is not None:
        with torch.no_grad():
            arguments[change].sub_(1)
    return found


# What is trained alone, and what may then change: no gradient depends on its values.
UNREAD = [
    ("bias", "bias_ih_l0"),
    ("bias", "bias_hh_l0"),
    ("bias", "weight_ih_l0"),
    ("bias", "x"),
    ("bias", "h0"),
    ("weight_ih", "weight_ih_l0"),
    ("weight_ih", "bias_hh_l0"),
    ("weight_ih", "h0"),
    ("weight_hh", "x"),
    ("weight_hh", "weight_ih_l0"),
    ("", "bias_ih_l0"),
    ("", "weight_ih_l0"),
]


@pytest.mark.parametrize(("trained", "change"), UNREAD)
@every_nonlinearity
@every_kind
def test_what_no_gradient_depends_on_may_change(kind, nonlinearity, trained, change):
    """As an optimizer changes the biases where only they are trained."""
    layer = training(make(kind, 1, nonlinearity), trained)
    assert_same(after_a_change(layer, change), after_a_change(layer, None))
    if kind == "real" and nonlinearity != "modrelu":
        theirs = torch.nn.RNN(INPUTS, HIDDEN, nonlinearity=nonlinearity).double()
        theirs.load_state_dict(layer.state_dict())
        assert_same(
            after_a_change(layer, change), after_a_change(training(theirs, trained), change)
        )


def test_the_offset_of_a_real_modrelu_may_change():
    layer = make("real")
    assert_same(after_a_change(layer, "offset_l0"), after_a_change(layer, None))


@pytest.mark.parametrize(
    ("kind", "trained", "change"),
    [
        ("complex", "bias", "offset_l0"),
        *((kind, "weight_ih", "x") for kind in KINDS),
        *((kind, "weight_hh", "h0") for kind in KINDS),
        *((kind, "bias", "weight_hh_l0") for kind in KINDS),
    ],
)
def test_what_a_gradient_depends_on_may_not(kind, trained, change):
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        after_a_change(training(make(kind), trained), change)


@pytest.mark.parametrize("options", [{"create_graph": True}, {"is_grads_batched": True}])
@pytest.mark.parametrize(
    ("change", "said"),
    [("bias_ih_l0", "bias_ih"), ("weight_ih_l0", "ih"), ("x", "the input"), ("h0", "the first")],
)
@every_kind
def test_a_pass_that_runs_the_recurrence_again_needs_all_as_it_was(kind, change, said, options):
    layer = training(make(kind), "bias")
    if "is_grads_batched" in options:
        options = {**options, "grad_outputs": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(RuntimeError, match=f"modified by an inplace operation: {said}"):
        after_a_change(layer, change, **options)
    after_a_change(layer, None, **options)


@every_kind
def test_biases_train_on_an_input_that_has_no_versions(kind):
    """A tensor of torch.inference_mode."""
    layer = training(make(kind), "bias")
    with torch.inference_mode():
        x = torch.ones(T, N, INPUTS, dtype=wide(kind))
    biases = [layer.bias_ih_l0, layer.bias_hh_l0]
    ours = torch.autograd.grad(loss(*layer(x)), biases)
    assert_same(ours, torch.autograd.grad(loss(*layer(x.clone())), biases))


@every_kind
def test_a_weight_that_was_changed_in_place_is_noticed(kind):
    layer = make(kind)
    for changed_states in (False, True):
        states, _ = layer(torch.randn(T, N, INPUTS, dtype=wide(kind)))
        states = states.mul_(2) if changed_states else states
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            padded(states).abs().sum().backward()
