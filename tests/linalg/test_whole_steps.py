"""Whole steps along directions that are never stored, against those along stored ones."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.linalg import extension, whole_steps
from geoopt_projunn.linalg.directions import Adam, Given, Momentum
from tests._asserts import assert_bit_equal, assert_unitary
from tests._matrices import DTYPES, unitary
from tests._modes import Recorder

pytestmark = [
    pytest.mark.skipif(not extension.BUILT, reason="the extension is not built"),
    pytest.mark.usefixtures("without_gradients"),
]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
KINDS = ("momentum", "nesterov", "adam", "amsgrad", "scalar", "scalar amsgrad")
kinds = pytest.mark.parametrize("kind", KINDS)
# Made at once, and chunk by chunk, with an odd rest.
SIZES = (7, 24, 301)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(n, dtype, kind, b=3):
    """Points, gradients, and what is remembered in the middle of a run."""
    x, grad = unitary(b, n, n, dtype=dtype), torch.randn(b, n, n, dtype=dtype) / n
    memory = [torch.randn(b, n, n, dtype=dtype) / n]
    if "adam" in kind or "amsgrad" in kind or "scalar" in kind:
        small = (b, 1, 1) if "scalar" in kind else (b, n, n)
        memory += [torch.rand(small, dtype=x.real.dtype) for _ in range(1 + ("amsgrad" in kind))]
    return x, grad, memory, torch.tensor([0, 5, 1_000_003, 7])[:b]


def direction(kind, grad, memory):
    if kind in ("momentum", "nesterov"):
        return Momentum(grad, *memory, 0.9, 0.3, kind == "nesterov")
    most = memory[2] if "amsgrad" in kind else None
    return Adam(grad, memory[0], memory[1], most, 0.9, 0.99, 1e-8)


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize(("k", "sketch"), [(1, "tangent"), (3, "tangent"), (2, "lsi")])
@pytest.mark.parametrize("n", SIZES)
@kinds
@dtypes
def test_a_whole_step_is_direction_step_and_memory_one_after_the_other(dtype, kind, n, k, sketch):
    x, grad, memory, counter = draw(n, dtype, kind)
    active = torch.tensor([True, False, True])
    manifold = LowRankUnitary(k, sketch=sketch, sweep=2)
    whole, parts = (([*x.clone()], copies(memory)) for _ in range(2))
    versions = [tensor._version for tensor in (*whole[0], *whole[1])]
    with Recorder() as recorder:
        along = direction(kind, [*grad], whole[1])
        stepped = manifold.step_(whole[0], along, 0.01, counter, active)
    assert recorder.operations & {"momentum_step_", "adam_step_"}
    # Beside what says which were stepped.
    assert recorder.largest <= 2 * len(x)
    assert all(
        tensor._version > version
        for tensor, version in zip((*whole[0], *whole[1]), versions, strict=True)
    )

    along = direction(kind, [grad], parts[1])
    made, finite = along.made(counter)
    assert finite.all()
    expected = manifold.step_(parts[0], Given([made]), 0.01, counter, active)
    along.advance_(counter, expected)
    assert stepped.tolist() == expected.tolist() == [True, False, True]
    for one, two in zip((*whole[0], *whole[1]), (*parts[0], *parts[1]), strict=True):
        assert_bit_equal(one, two)
    for after, before in zip(whole[1], memory, strict=True):
        assert_bit_equal(after[1], before[1])
    # All but the largest second moment, which may stay.
    for after, before in zip(whole[1][:2], memory[:2], strict=True):
        assert not torch.equal(after[0], before[0])
    assert not torch.equal(whole[0][0], x[0])
    assert_unitary(torch.stack(whole[0]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", SIZES)
@kinds
@dtypes
def test_where_anything_is_not_finite_nothing_changes(dtype, kind, n, bad):
    x, grad, memory, counter = draw(n, dtype, kind)
    grad[1].view(-1)[n * n // 2] = bad
    memory[0][2].view(-1)[-1] = torch.inf
    before = x.clone(), *copies(memory)
    everywhere = torch.ones(3, dtype=torch.bool)
    along = direction(kind, [grad], memory)
    stepped = LowRankUnitary(1).step_([x], along, 0.01, counter, everywhere)
    assert stepped.tolist() == [True, False, False]
    for after, old in zip((x, *memory), before, strict=True):
        assert_bit_equal(after[1:], old[1:])
    for after, old in zip((x, memory[0]), before[:2], strict=True):
        assert not torch.equal(after[0], old[0])


@pytest.mark.parametrize("kind", ["adam", "amsgrad", "scalar", "scalar amsgrad"])
@pytest.mark.parametrize("n", SIZES)
@dtypes
def test_a_second_moment_that_overflows_stops_the_step(dtype, n, kind):
    """Though the direction, divided by it, would be finite."""
    x, grad, memory, counter = draw(n, dtype, kind)
    grad[0, 1, 2] = torch.finfo(dtype).max ** 0.75
    before = x.clone(), *copies(memory)
    everywhere = torch.ones(3, dtype=torch.bool)
    along = direction(kind, [grad], memory)
    stepped = LowRankUnitary(1).step_([x], along, 0.01, counter, everywhere)
    assert stepped.tolist() == [False, True, True]
    for after, old in zip((x, *memory), before, strict=True):
        assert_bit_equal(after[0], old[0])


@pytest.mark.parametrize("n", [64, 301])
@kinds
@dtypes
def test_threads_and_other_matrices_change_no_bit(dtype, kind, n, threads):
    x, grad, memory, counter = draw(n, dtype, kind, b=4)
    outs = []
    for count, chosen in ((1, slice(4)), (2, slice(4)), (3, slice(4)), (1, slice(1, 2))):
        threads(count)
        own = [tensor[chosen].clone() for tensor in (x, *memory)]
        everywhere = torch.ones(len(own[0]), dtype=torch.bool)
        along = direction(kind, [*grad[chosen]], own[1:])
        LowRankUnitary(2).step_([own[0]], along, 0.01, counter[chosen], everywhere)
        outs.append(own)
    for other in outs[1:3]:
        for one, two in zip(outs[0], other, strict=True):
            assert_bit_equal(one, two)
    for one, alone in zip(outs[0], outs[3], strict=True):
        assert_bit_equal(one[1], alone[0])


@pytest.mark.parametrize("b", [0, 1])
def test_they_are_operators_as_torch_wants_them(b):
    x, grad = torch.eye(6).expand(b, 6, 6).clone(), torch.randn(b, 6, 6)
    first, second = torch.randn(b, 6, 6), torch.rand(b, 6, 6)
    counter, active = torch.arange(b), torch.ones(b, dtype=torch.bool)
    how = 2, False, "exponential", torch.tensor(0.1, dtype=torch.float64), 1, counter, active
    for step, memory in (
        (whole_steps.momentum_step_, (first, 0.9, 0.1, True)),
        (whole_steps.adam_step_, (first, second, None, 0.9, 0.99, 1e-8)),
        (whole_steps.adam_step_, (first, second, second.clone(), 0.9, 0.99, 1e-8)),
    ):
        torch.library.opcheck(step, ([x], [grad], *memory, *how))


@kinds
def test_flops_are_those_of_a_step_along_a_stored_direction(kind):
    x, grad, memory, counter = draw(24, torch.float32, kind)
    counts = []
    for along in (Given([grad]), direction(kind, [*grad], memory)):
        with FlopCounterMode(display=False) as flops:
            LowRankUnitary(2).step_([*x], along, 0.1, counter, torch.ones(3, dtype=torch.bool))
        counts.append(flops.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_what_does_not_fit_is_refused():
    x, grad, memory, counter = draw(6, torch.float32, "amsgrad")
    before = x.clone(), *copies(memory)
    active = torch.ones(3, dtype=torch.bool)
    how = 1, False, "polar", torch.tensor(0.1, dtype=torch.float64), 1, counter, active
    first, second, most = memory
    numbers = 0.9, 0.99, 1e-8
    for state, message in (
        ((grad.mT, first, second, most), r"`grad` must be contiguous, .* strides \(36, 1, 6\)"),
        ((grad, first[:2], second, most), r"`first` must be .* got shape \(2, 6, 6\)"),
        ((grad, first, second.double(), most), r"`second` must be .* got .*float64"),
        ((grad, first, second, most[:, :1]), r"`most` must be .* got shape \(3, 1, 6\)"),
        ((grad, first, second[:, :1, :1].contiguous(), most), r"`most` must be .*\(3, 1, 1\)"),
    ):
        own, *moments = state
        with pytest.raises(ValueError, match=message):
            whole_steps.adam_step_([x], [own], *moments, *numbers, *how)
    for own, buffer, message in (
        (grad.mT, first, r"`grad` must be contiguous, .* strides \(36, 1, 6\)"),
        (grad, first.mT, r"`buffer` must be contiguous, .* strides \(36, 1, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            whole_steps.momentum_step_([x], [own], buffer, 0.9, 0.0, False, *how)
    for one, two in zip((x, *memory), before, strict=True):
        assert_bit_equal(one, two)
