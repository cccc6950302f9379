"""What a pass of a gated layer keeps, allocates and runs, counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn.nn import OrthogonalGRU
from tests._modes import Recorder
from tests.nn.test_costs import Count, kept

NONLINEARITIES = ("modrelu", "relu", "tanh")
LENGTH, BATCH, INPUTS, HIDDEN = 30, 4, 2, 16

every_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)


@every_nonlinearity
def test_the_states_four_parts_of_each_and_the_input_are_all_that_is_kept(nonlinearity):
    layer = OrthogonalGRU(INPUTS, HIDDEN, nonlinearity=nonlinearity)
    x = torch.randn(LENGTH, BATCH, INPUTS)
    size, states = kept(layer, x)
    assert size == 5 * states.nbytes + x.nbytes


@pytest.mark.parametrize("hidden", [16, 128])
def test_that_is_less_than_torch_keeps(hidden):
    x = torch.randn(LENGTH, BATCH, INPUTS)
    ours, _ = kept(OrthogonalGRU(INPUTS, hidden), x)
    theirs, _ = kept(torch.nn.GRU(INPUTS, hidden), x)
    assert ours < theirs


@every_nonlinearity
def test_of_a_long_sequence_the_backward_pass_has_an_eighth_of_the_gradients_at_a_time(
    nonlinearity,
):
    layer = OrthogonalGRU(INPUTS, 64, nonlinearity=nonlinearity)
    states = layer(torch.randn(128, 32, INPUTS))[0]
    gradient = torch.ones_like(states)
    with Recorder() as recorder:
        states.backward(gradient)
    assert recorder.largest == 4 * states.numel() / 8
    # Those of the states, and of their four parts.
    assert recorder.most_alive < 2 * 5 * states.numel() / 8


@every_nonlinearity
def test_without_gradients_nothing_grows_with_time_but_the_states_and_their_parts(nonlinearity):
    layer = OrthogonalGRU(INPUTS, HIDDEN, nonlinearity=nonlinearity)
    with torch.no_grad(), Recorder() as recorder:
        states = layer(torch.randn(LENGTH, BATCH, INPUTS))[0]
    large = [size for size in recorder.created if size > 4 * BATCH * HIDDEN]
    weights = 3 * HIDDEN * HIDDEN
    assert sorted(large) == sorted([states.numel(), 4 * states.numel(), weights])


@every_nonlinearity
def test_a_time_step_runs_one_product_each_way_and_few_operations(nonlinearity):
    layer = OrthogonalGRU(INPUTS, HIDDEN, nonlinearity=nonlinearity)
    counts = []
    for length in (10, 20):
        layer.zero_grad()
        x = torch.randn(length, BATCH, INPUTS)
        with Count() as forward:
            states = layer(x)[0]
        gradient = torch.ones_like(states)
        with Count() as backward:
            states.backward(gradient)
        counts.append((forward.operations, backward.operations))
    own = 4 if nonlinearity == "modrelu" else 1
    for (first, second), others in zip(zip(*counts, strict=True), (3, 8), strict=True):
        grown = {name: n / 10 for name, n in (second - first).items()}
        assert grown.pop("addmm_") == 1
        assert sum(grown.values()) <= others + own, grown


@every_nonlinearity
def test_nothing_waits_for_the_device(nonlinearity):
    layer = OrthogonalGRU(INPUTS, HIDDEN, 2, nonlinearity=nonlinearity, bidirectional=True)
    x = torch.randn(LENGTH, BATCH, INPUTS)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.arange(LENGTH, LENGTH - BATCH, -1))
    for given in (x, packed):
        with Recorder() as recorder:
            states = layer(given)[0]
            states = states if given is x else states.data
            states.backward(torch.ones_like(states))
        assert not recorder.forbidden


@every_nonlinearity
def test_the_flops_are_those_of_the_products(nonlinearity):
    layer = OrthogonalGRU(INPUTS, HIDDEN, nonlinearity=nonlinearity, device="meta")
    x = torch.empty(LENGTH, BATCH, INPUTS, device="meta")

    def product(total, a, b, **_):
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product}  # which torch forgets
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        states = layer(x)[0]
        states.backward(torch.empty_like(states))
    read = 2 * LENGTH * BATCH * INPUTS * 3 * HIDDEN  # forward, and for the gradient of its weight
    turn = 2 * BATCH * 3 * HIDDEN**2  # of one step; and for the gradient of the states
    # The first state is zero: it is multiplied, but needs no gradient.
    assert counter.get_total_flops() == 2 * read + (LENGTH + 2 * (LENGTH - 1)) * turn
