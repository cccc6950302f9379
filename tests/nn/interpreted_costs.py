"""What recurrences in one launch cost: launches, operations and Python, whatever their length.

test_recurrence_kernels.py runs this interpreted.
"""

import gc
import sys
from collections import Counter

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from geoopt_projunn.nn.kernels import modrelu
from geoopt_projunn.nn.kernels import recurrence as kernels
from geoopt_projunn.nn.recurrences import passes
from geoopt_projunn.nn.recurrences.order import Order
from geoopt_projunn.nn.recurrences.recurrence import recur
from geoopt_projunn.nn.recurrences.unrolled import Weights
from tests._modes import Recorder
from tests.nn.interpreted_recurrence import arguments
from tests.nn.test_costs import Count


@pytest.fixture
def idle(monkeypatch):
    """Count the launches, which do nothing."""
    counts = Counter()

    def launch(kernel, *_, **__):
        counts[kernel.fn.__name__.strip("_")] += 1

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(modrelu, "Repeated", lambda kernel, *_, **__: lambda *_: launch(kernel))
    return counts


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_any_number_of_steps_is_one_launch_each_way(kind, idle):
    layer = kind(2, 190)
    counted = []
    for length in (100, 150):
        layer.zero_grad()
        idle.clear()
        with Count() as operations:
            states = layer(torch.randn(length, 1, 2, dtype=layer.weight_ih_l0.dtype))[0]
            states.backward(torch.ones_like(states))
        assert idle == {"forward": 1, "backward": 1}
        counted.append(operations.operations)
    assert counted[0] == counted[1]


@pytest.mark.parametrize("is_packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_what_python_does_does_not_grow_with_time(kind, is_packed, idle, monkeypatch):
    layer = kind(2, 16, bidirectional=True)
    # Chunks of the backward pass of short sequences as well.
    monkeypatch.setattr(passes, "_LEAST_ENTRIES", 1)

    def work(length):
        x = torch.randn(length, 4, 2, dtype=layer.weight_ih_l0.dtype)
        given = pack_padded_sequence(x, [length, length, length // 2, length // 4])
        h0 = torch.randn(2, 4, 16, dtype=x.dtype)

        def both_ways():
            states = layer(given if is_packed else x, h0)[0]
            states = states.data if is_packed else states
            states.backward(torch.ones_like(states))

        with Recorder() as recorder:
            both_ways()
        return recorder.returned, calls(both_ways)

    work(64)
    assert work(64) == work(640)


def calls(run):
    """Return how many functions Python calls."""
    events = Counter()
    before = sys.getprofile()
    gc.disable()  # it may call some when it likes
    sys.setprofile(lambda frame, event, arg: events.update([event]))
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return events["call"] + events["c_call"]


def test_of_a_long_sequence_it_is_one_for_each_chunk_of_the_backward_pass(idle):
    layer = OrthogonalRNN(2, 64)
    states = layer(torch.randn(128, 32, 2))[0]
    gradient = torch.ones_like(states)
    with Recorder() as recorder:
        states.backward(gradient)
    assert recorder.largest == states.numel() / 8
    assert idle == {"forward": 1, "backward": 8}


@pytest.mark.parametrize(
    ("kind", "hidden", "batch"),
    [(OrthogonalRNN, 257, 1), (UnitaryRNN, 193, 1), (OrthogonalRNN, 16, 2049)],
)
def test_a_matrix_or_a_batch_that_is_too_large_takes_a_launch_a_step(kind, hidden, batch, idle):
    layer = kind(2, hidden, init="identity")
    states = layer(torch.randn(3, batch, 2, dtype=layer.weight_ih_l0.dtype))[0]
    states.backward(torch.ones_like(states))
    name = "complex" if layer.is_complex else "real"
    assert idle == {f"forward_{name}": 3, f"backward_{name}": 3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_a_launch_a_step(dtype, idle):
    x, h0, weights = arguments(5, 6, 2, torch.float32)
    x, h0, *weights = (t.detach().to(dtype).requires_grad_() for t in (x, h0, *weights))
    states, _ = recur(x, h0, Weights(*weights), nonlinearity="modrelu", order=Order([2] * 3, False))
    states.backward(torch.ones_like(states))
    assert idle == {"forward_real": 3, "backward_real": 3}
