"""Whole steps of matrices wherever they lie, against their stages one after the other."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.linalg import extension, stages, whole_steps
from geoopt_projunn.linalg.directions import Adam, Given, Momentum
from tests._asserts import assert_bit_equal, assert_unitary
from tests._matrices import DTYPES, unitary
from tests._modes import Recorder

pytestmark = [
    pytest.mark.skipif(not extension.BUILT, reason="the extension is not built"),
    pytest.mark.usefixtures("without_gradients"),
]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
REMEMBERING = ("momentum", "nesterov", "adam", "amsgrad", "scalar", "scalar amsgrad")
kinds = pytest.mark.parametrize("kind", ["given", *REMEMBERING])
# Made at once, and chunk by chunk, with an odd rest.
sizes = pytest.mark.parametrize("n", [7, 24, 301])
LENGTH = torch.tensor(0.01, dtype=torch.float64)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(n, dtype, kind, b=3):
    """Points, gradients, what is remembered in the middle of a run, and steps taken."""
    x, grad = unitary(b, n, n, dtype=dtype), torch.randn(b, n, n, dtype=dtype) / n
    memory = []
    if kind != "given":
        memory.append(torch.randn(b, n, n, dtype=dtype) / n)
    if "adam" in kind or "amsgrad" in kind or "scalar" in kind:
        small = (b, 1, 1) if "scalar" in kind else (b, n, n)
        memory += [torch.rand(small, dtype=x.real.dtype) for _ in range(1 + ("amsgrad" in kind))]
    return x, grad, memory, torch.tensor([0, 5, 1_000_003, 7])[:b]


def direction(kind, grad, memory):
    if kind == "given":
        return Given(grad)
    if kind in ("momentum", "nesterov"):
        return Momentum(grad, *memory, 0.9, 0.3, kind == "nesterov")
    most = memory[2] if "amsgrad" in kind else []
    return Adam(grad, memory[0], memory[1], most, 0.9, 0.99, 1e-8)


def take(manifold, kind, x, grad, memory, counter, each=1, grads=None):
    """Step copies whose tensors hold ``each`` matrices; return points, memory and counts."""

    def pieces(tensor, size):
        return [part.clone() for part in tensor.split(size)]

    points, kept = pieces(x, each), [pieces(one, each) for one in memory]
    steps, skipped = pieces(counter, each), pieces(torch.zeros(len(x), dtype=x.real.dtype), each)
    along = direction(kind, pieces(grad, each) if grads is None else grads, kept)
    manifold.step_whole_(points, along, LENGTH, steps, skipped)
    return [torch.cat(parts) for parts in (points, *kept, steps, skipped)]


@pytest.mark.parametrize("retraction", stages.RETRACTIONS)
@pytest.mark.parametrize(("k", "sketch"), [(1, "tangent"), (3, "tangent"), (2, "lsi")])
@sizes
@kinds
@dtypes
def test_a_whole_step_is_its_stages_one_after_the_other(dtype, kind, n, k, sketch, retraction):
    x, grad, memory, counter = draw(n, dtype, kind)
    manifold = LowRankUnitary(k, sketch=sketch, retraction=retraction, sweep=2)
    with Recorder() as recorder:
        after, *kept, steps, skipped = take(manifold, kind, x, grad, memory, counter)
    assert recorder.operations & {"step_", "momentum_step_", "adam_step_"}
    assert steps.tolist() == (counter + 1).tolist()
    assert not skipped.any()

    expected = x.clone()
    own = [one.clone() for one in memory]
    along = direction(kind, [grad], [[one] for one in own])
    made, _ = along.made(counter)
    everywhere = torch.ones(3, dtype=torch.bool)
    assert manifold.step_(expected, made, LENGTH, counter, everywhere).all()
    along.advance_(counter, everywhere)
    assert_bit_equal(after, expected)
    for one, other in zip(kept, own, strict=True):
        assert_bit_equal(one, other)
    # All but the largest second moment, which may stay.
    for one, before in zip((after, *kept[:2]), (x, *memory[:2]), strict=True):
        assert not torch.equal(one, before)
    assert_unitary(after)


@pytest.mark.parametrize("kind", ["given", "momentum", "adam", "scalar amsgrad"])
@dtypes
def test_where_the_matrices_lie_changes_no_bit(dtype, kind, threads):
    x, grad, memory, counter = draw(24, dtype, kind, b=4)
    grad[2, 3, 4] = torch.inf
    manifold = LowRankUnitary(3)
    whole = take(manifold, kind, x, grad, memory, counter, 4)
    assert whole[-1].tolist() == [0, 0, 1, 0]
    for each, of_grad, count in ((1, 1, 1), (2, 2, 2), (1, 4, 2), (4, 1, 1), (2, 1, 3)):
        threads(count)
        grads = list(grad.split(of_grad))
        for one, other in zip(
            whole,
            take(manifold, kind, x, grad, memory, counter, each, grads),
            strict=True,
        ):
            assert_bit_equal(one, other)


@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
def test_points_and_gradients_may_be_stored_by_columns(sketch):
    x, grad, _, counter = draw(24, torch.complex128, "given")
    manifold = LowRankUnitary(2, sketch=sketch)
    expected, *_ = take(manifold, "given", x, grad, [], counter)
    points = [point.mT.contiguous().mT for point in x]
    versions = [point._version for point in points]
    skipped = [torch.zeros((), dtype=torch.float64) for _ in points]
    steps = [count.clone() for count in counter]
    along = Given([one.mT.contiguous().mT for one in grad])
    manifold.step_whole_(points, along, LENGTH, steps, skipped)
    assert (torch.stack(points) - expected).abs().max() < 1e-13
    for tensor, before in zip(points, versions, strict=True):
        assert tensor._version > before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@sizes
@kinds
@dtypes
def test_where_anything_is_not_finite_nothing_changes(dtype, kind, n, bad):
    x, grad, memory, counter = draw(n, dtype, kind)
    grad[1].view(-1)[n * n // 2] = bad
    if memory:
        memory[0][2].view(-1)[-1] = torch.inf
    after, *kept, steps, skipped = take(LowRankUnitary(1), kind, x, grad, memory, counter)
    stays = torch.tensor([False, True, bool(memory)])
    assert skipped.tolist() == stays.tolist()
    assert steps.tolist() == (counter + ~stays).tolist()
    for one, before in zip((after, *kept), (x, *memory), strict=True):
        assert_bit_equal(one[stays], before[stays])
    for one, before in zip((after, *kept[:1]), (x, *memory[:1]), strict=True):
        assert not torch.equal(one[0], before[0])


@pytest.mark.parametrize("kind", ["adam", "amsgrad", "scalar", "scalar amsgrad"])
@sizes
@dtypes
def test_a_second_moment_that_overflows_stops_the_step(dtype, n, kind):
    """Though the direction, divided by it, would be finite."""
    x, grad, memory, counter = draw(n, dtype, kind)
    grad[0, 1, 2] = torch.finfo(dtype).max ** 0.75
    after, *kept, _, skipped = take(LowRankUnitary(1), kind, x, grad, memory, counter)
    assert skipped.tolist() == [1, 0, 0]
    for one, before in zip((after, *kept), (x, *memory), strict=True):
        assert_bit_equal(one[0], before[0])


@pytest.mark.parametrize("n", [64, 301])
@kinds
@dtypes
def test_threads_and_other_matrices_change_no_bit(dtype, kind, n, threads):
    x, grad, memory, counter = draw(n, dtype, kind, b=4)
    outs = []
    for count, part in ((1, slice(4)), (2, slice(4)), (3, slice(4)), (1, slice(1, 2))):
        threads(count)
        own = [one[part] for one in memory]
        outs.append(take(LowRankUnitary(2), kind, x[part], grad[part], own, counter[part]))
    for other in outs[1:3]:
        for one, two in zip(outs[0], other, strict=True):
            assert_bit_equal(one, two)
    for one, alone in zip(outs[0], outs[3], strict=True):
        assert_bit_equal(one[1], alone[0])


@pytest.mark.parametrize("b", [0, 1])
def test_they_are_operators_as_torch_wants_them(b):
    x, grad = torch.eye(6).expand(b, 6, 6).clone(), torch.randn(b, 6, 6)
    first, second = [torch.randn(b, 6, 6)], [torch.rand(b, 6, 6)]
    most = [second[0].clone()]
    how = [torch.arange(b)], [torch.zeros(b)], 2, False, "exponential", LENGTH, 1
    for step, memory in (
        (whole_steps.step_, ()),
        (whole_steps.momentum_step_, (first, 0.9, 0.1, True)),
        (whole_steps.adam_step_, (first, second, [], 0.9, 0.99, 1e-8)),
        (whole_steps.adam_step_, (first, second, most, 0.9, 0.99, 1e-8)),
    ):
        torch.library.opcheck(step, ([x], [grad], *memory, *how))


@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
@kinds
def test_flops_are_counted_and_nothing_runs_without_data(kind, sketch):
    def run():
        x, grad, memory, counter = draw(24, torch.float32, kind)
        return take(LowRankUnitary(4, sketch=sketch, sweep=2), kind, x, grad, memory, counter)

    with FlopCounterMode(display=False) as flops:
        real = run()
    # Of a sketch of rank 4, of which the products of four rows are known, and a turn of rank 8
    # that sweeps two columns.
    of_entries = (14 if sketch == "tangent" else 6) * 4 + 4 * (8 + 2)
    assert flops.get_flop_counts()["Global"][_operator(kind)] == of_entries * 3 * 24**2
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(3, 24, 24)
        counts = torch.zeros(3, dtype=torch.int64), torch.zeros(3)
        whole_steps.step_(
            [x], [x.clone()], *([one] for one in counts), 1, False, "polar", LENGTH, 1
        )
    assert real[0].isfinite().all()


def _operator(kind):
    name = {"given": "step_", "momentum": "momentum_step_", "nesterov": "momentum_step_"}
    return getattr(torch.ops.geoopt_projunn, name.get(kind, "adam_step_"))


def test_what_does_not_fit_is_refused():
    x, grad, memory, counter = draw(6, torch.float32, "amsgrad")
    before = [one.clone() for one in (x, *memory, counter)]
    first, second, most = memory
    skipped = torch.zeros(3)
    how = {"step": [counter], "skipped": [skipped], "k": 1, "is_lsi": False}
    how |= {"retraction": "cayley", "length": LENGTH, "sweep": 1}
    plain = {"x": [x], "d": [grad], **how}
    momentum = {"x": [x], "grad": [grad], "buffer": [first], "momentum": 0.9, "dampening": 0.0}
    momentum |= {"nesterov": False, **how}
    adam = {"x": [x], "grad": [grad], "first": [first], "second": [second], "most": [most]}
    adam |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, **how}
    by_columns = r"must be contiguous, .* strides \(36, 1, 6\)"
    for step, arguments, name, wrong, message in (
        (whole_steps.step_, plain, "x", [x[0], x[1], x[2].mT], r"one shape, strides.*\(1, 6\)"),
        (whole_steps.step_, plain, "x", [x[0], x[1].double(), x[2]], r"float32, .*, .*float64"),
        (whole_steps.step_, plain, "x", [x[0], x[1, :5], x[2]], r"\(6, 6\).*\(5, 6\)"),
        (whole_steps.step_, plain, "x", [x[0, :5]], r"must be contiguous, of shape \(6, 6\)"),
        (whole_steps.step_, plain, "d", [*grad[:2]], r"must be 3 matrices, got 2"),
        (whole_steps.step_, plain, "d", [grad[:, :5]], r"\(3, 6, 6\).* got shape \(3, 5, 6\)"),
        (whole_steps.step_, plain, "d", [grad.double()], r"float32, got .*float64"),
        (whole_steps.step_, plain, "k", 0, r"must be between 1 and n / 2 = 3, got 0"),
        (whole_steps.step_, plain, "retraction", "none", r"one of .*'polar'.*, got 'none'"),
        (whole_steps.step_, plain, "length", torch.tensor(0.1), r"float64, got .*float32"),
        (whole_steps.step_, plain, "sweep", -1, r"must be between 0 and n = 6, got -1"),
        (whole_steps.step_, plain, "step", [counter.int()], r"int64, got .*int32"),
        (whole_steps.step_, plain, "step", [counter[:2]], r"\(3,\) .* got shape \(2,\)"),
        (whole_steps.step_, plain, "step", [counter] * 2, r"must be of 3 matrices, got 2 tensors"),
        (whole_steps.step_, plain, "skipped", [skipped.double()], r"float32, got .*float64"),
        (whole_steps.momentum_step_, momentum, "grad", [grad.mT], by_columns),
        (whole_steps.momentum_step_, momentum, "buffer", [first.mT], by_columns),
        (whole_steps.adam_step_, adam, "grad", [grad.mT], by_columns),
        (whole_steps.adam_step_, adam, "first", [first[:2]], r"got shape \(2, 6, 6\)"),
        (whole_steps.adam_step_, adam, "second", [second.double()], r"got .*float64"),
        (whole_steps.adam_step_, adam, "most", [most[:, :1]], r"got shape \(3, 1, 6\)"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` .*{message}"):
            step(**{**arguments, name: wrong})
    for one, two in zip((x, *memory, counter), before, strict=True):
        assert_bit_equal(one, two)
    assert not skipped.any()
