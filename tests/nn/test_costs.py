"""What a pass keeps, allocates and runs, counted."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._modes import Recorder
from tests.nn._oracles import KINDS

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")
LENGTH, BATCH, INPUTS, HIDDEN = 30, 4, 2, 16

cases = pytest.mark.parametrize(
    ("kind", "nonlinearity"), [(kind, name) for kind in KINDS for name in NONLINEARITIES]
)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.operations[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run(layer, length=LENGTH):
    x = torch.randn(length, BATCH, INPUTS, dtype=layer.weight_ih_l0.dtype)
    return layer(x)[0]


def kept(module, x):
    """Return the bytes that a forward pass keeps for the backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        states = module(x)[0]
    return sum(sizes.values()), states


@cases
def test_the_states_and_the_input_are_all_that_is_kept(kind, nonlinearity):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity)
    x = torch.randn(LENGTH, BATCH, INPUTS, dtype=layer.weight_ih_l0.dtype)
    size, states = kept(layer, x)
    assert size == states.nbytes + x.nbytes


def test_that_is_less_than_torch_keeps():
    x = torch.randn(LENGTH, BATCH, INPUTS)
    ours, _ = kept(OrthogonalRNN(INPUTS, HIDDEN, 2, "relu"), x)
    theirs, _ = kept(torch.nn.RNN(INPUTS, HIDDEN, 2, "relu"), x)
    assert ours < theirs


@cases
def test_nothing_that_grows_with_time_is_allocated_but_the_states_a_copy_and_their_gradient(
    kind, nonlinearity
):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity)
    with Recorder() as recorder:
        states = run(layer)
        states.backward(torch.ones_like(states))
    # The projected input becomes the states, a gradient that of it; users get a copy.
    assert recorder.created.count(states.numel()) == 3 + 1  # and the gradient of the test
    assert recorder.largest == states.numel()


@cases
def test_of_a_long_sequence_the_backward_pass_has_an_eighth_of_the_gradients_at_a_time(
    kind, nonlinearity
):
    layer = LAYERS[kind](INPUTS, 64, nonlinearity=nonlinearity)
    x = torch.randn(128, 32, INPUTS, dtype=layer.weight_ih_l0.dtype)
    states = layer(x)[0]
    gradient = torch.ones_like(states)
    with Recorder() as recorder:
        states.backward(gradient)
    assert recorder.largest == states.numel() / 8
    assert recorder.most_alive < 2 * states.numel() / 8


@cases
def test_without_gradients_the_states_are_all_that_grows_with_time(kind, nonlinearity):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity)
    with torch.no_grad(), Recorder() as recorder:
        states = run(layer)
    assert recorder.created.count(states.numel()) == 1


@cases
def test_a_time_step_runs_one_product_each_way_and_few_operations(kind, nonlinearity):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity)
    counts = []
    for length in (10, 20):
        layer.zero_grad()
        with Count() as forward:
            states = run(layer, length)
        gradient = torch.ones_like(states)
        with Count() as backward:
            states.backward(gradient)
        counts.append((forward.operations, backward.operations))
    most = {"relu": 1, "tanh": 1, "modrelu": 4 if kind == "real" else 14}[nonlinearity]
    for first, second in zip(*counts, strict=True):
        grown = {name: n / 10 for name, n in (second - first).items()}
        assert grown.pop("addmm_") == 1
        assert sum(grown.values()) <= most, grown


@cases
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_waits_for_the_device(kind, nonlinearity, packed):
    layer = LAYERS[kind](INPUTS, HIDDEN, 2, nonlinearity, bidirectional=True)
    x = torch.randn(LENGTH, BATCH, INPUTS, dtype=layer.weight_ih_l0.dtype)
    if packed:
        lengths = torch.arange(LENGTH, LENGTH - BATCH, -1)
        x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    with Recorder() as recorder:
        states = layer(x)[0]
        states = states.data if packed else states
        states.backward(torch.ones_like(states))
    assert not recorder.forbidden


@cases
def test_the_flops_are_those_of_the_products(kind, nonlinearity):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity, device="meta")
    x = torch.empty(LENGTH, BATCH, INPUTS, dtype=layer.weight_ih_l0.dtype, device="meta")

    def product(total, a, b, **_):
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product}  # which torch forgets
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        states = layer(x)[0]
        states.backward(torch.empty_like(states))
    read = 2 * LENGTH * BATCH * INPUTS * HIDDEN  # forward, and for the gradient of its weight
    turn = 2 * (LENGTH - 1) * BATCH * HIDDEN**2  # and for the gradient of the states
    assert counter.get_total_flops() == 2 * read + 3 * turn


@cases
def test_in_both_directions_the_gradient_of_a_weight_is_one_product_over_all_steps(
    kind, nonlinearity
):
    layer = LAYERS[kind](INPUTS, HIDDEN, nonlinearity=nonlinearity, bidirectional=True)
    products = []
    for length in (10, 20):
        states = run(layer, length)
        gradient = torch.ones_like(states)
        with Count() as backward:
            states.backward(gradient)
        products.append(sum(backward.operations[name] for name in ("mm", "addmm_")))
    # One for every step and direction, which turns its gradient back.
    assert products[1] - products[0] == 2 * 10
