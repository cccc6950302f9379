"""Processes that average gradients step the same parameters, or none."""

import datetime
import warnings

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import sketch_gradients_
from geoopt_projunn.optim import agreement, nonfinite, watch

from ._meshes import digest
from ._traffic import Traffic

N = 12
RULES = {
    "gradient": ({}, LowRankUnitary(k=2), (N, N)),
    "nesterov, lsi": ({"momentum": 0.9, "nesterov": True}, LowRankUnitary(sketch="lsi"), (N, N)),
    "feedback": ({"momentum": 0.5, "error_feedback": 0.9}, LowRankUnitary(k=2), (N, N)),
    "wide, angle": ({"momentum": 0.9, "normalize": "angle"}, LowRankStiefel(k=1), (4, N)),
    "blocks, all": ({"skip_nonfinite": "all"}, LowRankUnitary(blocks=2), (2 * N, N)),
}
MOMENTUM = {"momentum": 0.9}
_groups = {}


def group_of(ranks):
    """Return a group in which nobody waits long; made by all processes, and once."""
    if ranks not in _groups:
        _groups[ranks] = distributed.new_group(ranks, timeout=datetime.timedelta(seconds=30))
    return _groups[ranks]


class Replica:
    """Two matrices, whose gradients the first processes average, and a plain parameter."""

    def __init__(self, size=2, rule="gradient", *, swap_marks=False, swap_groups=False, **options):
        defaults, manifold, shape = RULES[rule]
        self.group = group_of(tuple(range(size)))
        self.is_in = distributed.get_rank() < size
        self.rank = distributed.get_rank()
        points = [manifold.random(*shape, dtype=torch.float64) for _ in range(2)]
        self.a, self.b = (geoopt.ManifoldParameter(x, manifold=manifold) for x in points)
        self.c = torch.nn.Parameter(torch.ones(3))
        marked, named = [self.a, self.b], [("a", self.a), ("b", self.b), ("c", self.c)]
        if self.is_in:
            sketch_gradients_(marked[::-1] if swap_marks else marked, self.group)
        self.optimizer = ProjUNNRiemannianSGD(
            named[::-1] if swap_groups else named, lr=0.1, **{**defaults, **options}
        )

    def give(self, names):
        """Give these parameters gradients, the others none; so does c get one."""
        for name in "abc":
            p = getattr(self, name)
            p.grad = torch.randn_like(p) * (1 + self.rank) if name in names + "c" else None

    def refused(self, error, match):
        """Take a step that raises an error and changes nothing."""
        before = self.bits()
        with pytest.raises(error, match=match):
            self.optimizer.step()
        assert self.bits() == before

    def bits(self, names="abc"):
        params = [getattr(self, name) for name in names]
        state = [self.optimizer.state.get(p, {}) for p in params]
        tensors = [t for of in state for t in of.values() if isinstance(t, torch.Tensor)]
        return list(map(sorted, state)), digest(*params, *tensors)

    def is_alike(self):
        """Return whether all processes have the same points."""
        own = digest(self.a, self.b)
        everywhere = [None] * self.group.size()
        distributed.all_gather_object(everywhere, own, group=self.group)
        return len(set(everywhere)) == 1


def disagree(size, rule):
    """Some have a gradient of a, the last one of b: at the first step, and at a later one."""
    replica = Replica(size, rule)
    if not replica.is_in:
        return True
    last = size - 1
    others = "process 0 has" if size == 2 else "process 0, 1 has"
    message = (
        rf"must take a step with gradients of the same parameters, marked in the same order, but "
        rf"{others} parameter `a` of shape .*, marked as number \d+; process {last} has parameter "
        r"`b` of .*\. Nothing has changed\. Set `p.grad = torch.zeros_like\(p\)`"
    )
    for _ in range(2):
        replica.give("b" if replica.rank == last else "a")
        replica.refused(RuntimeError, message)
        # What one of them has not.
        replica.give("a" if replica.rank == last else "ab")
        replica.refused(RuntimeError, rf"`b` .*; process {last} has no other\. Nothing")
        # None at all.
        replica.give("" if replica.rank == last else "a")
        replica.refused(RuntimeError, rf"`a` .*; process {last} has no other\. Nothing")
        replica.give("ab")
        replica.optimizer.step()
    return replica.is_alike()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_of_different_parameters_are_an_error_on_all_processes(world, size, rule):
    assert all(world.run(disagree, size, rule))


def orders():
    """Return the messages where one process marks, or steps, in another order."""
    messages = []
    for name in ("swap_marks", "swap_groups"):
        replica = Replica(**{name: distributed.get_rank() == 1})
        if replica.is_in:
            replica.give("ab")
            before = replica.bits()
            with pytest.raises(RuntimeError) as info:
                replica.optimizer.step()
            assert replica.bits() == before
            messages.append(str(info.value))
    # Marked again, on one of them: nothing new.
    replica = Replica()
    if not replica.is_in:
        return None
    if replica.rank == 1:
        sketch_gradients_([replica.b, replica.a], replica.group)
    replica.give("ab")
    replica.optimizer.step()
    return messages, replica.is_alike()


def test_processes_have_to_mark_and_step_in_one_order(world):
    first, second, *_ = world.run(orders)
    assert first == second
    (of_marks, of_groups), alike = first
    assert "`a` of shape (12, 12), marked as number" in of_marks
    assert "in different orders" in of_groups
    assert alike


def fail():
    """The first process has an error of its own; then the second one."""
    replica = Replica(3)
    if not replica.is_in:
        return True
    is_first = replica.rank == 0
    with torch.no_grad():
        start = replica.a.clone()
        replica.a.copy_(2 * start if is_first else start)
    replica.give("ab")
    own = ValueError, "Parameter `a` .* must satisfy xᴴx = I before its first step"
    told = (
        RuntimeError,
        "Process 0 takes no step, .* Its error is ValueError: Parameter `a` .* must",
    )
    replica.refused(*(own if is_first else told))
    with torch.no_grad():
        replica.a.copy_(start)
    replica.optimizer.step()
    if replica.rank == 1:
        replica.c.grad = replica.c.grad.to_sparse()
        replica.optimizer.param_groups[0]["weight_decay"] = 0.1
        replica.refused(TypeError, "`grad` of parameter `c` of shape .* must be dense")
        replica.c.grad = replica.c.grad.to_dense()
    else:
        replica.refused(RuntimeError, "Process 1 takes no step, .* TypeError: `grad` of par.* `c`")
    replica.optimizer.step()
    # And all of them at once: each has its own.
    replica.optimizer.param_groups[0]["lr"] = -1.0
    replica.refused(ValueError, "`lr` must lie in")
    return replica.is_alike()


def test_an_error_of_one_process_ends_the_step_of_all(world):
    assert all(world.run(fail))


def load():
    """One process alone loads a state; then both load the states of different parameters."""
    replica = Replica(**MOMENTUM)
    if not replica.is_in:
        return True
    replica.give("ab")
    replica.optimizer.step()
    saved = replica.optimizer.state_dict()
    if replica.rank == 0:
        replica.optimizer.load_state_dict(saved)
    replica.refused(RuntimeError, r"process 0 has .*`a` .*, at its first step\), .* process 1 has")
    saved["state"].pop(replica.rank)
    replica.optimizer.load_state_dict(saved)
    before = replica.bits()
    message = "must save the state of the same parameters.* process 0 has parameter `b`.* 1 has par"
    with pytest.raises(RuntimeError, match=message):
        replica.optimizer.state_dict()
    return replica.bits() == before


def test_states_of_different_parameters_are_not_averaged(world):
    assert all(world.run(load))


def overlap():
    """Processes 0 and 1 disagree; 2 averages with 1, in a group that comes later."""
    replica, later = Replica(), group_of((1, 2))
    if distributed.get_rank() == 3:
        return True
    p = geoopt.ManifoldParameter(LowRankUnitary().random(N, N, dtype=torch.float64))
    if replica.rank > 0:
        sketch_gradients_(p, later)
    replica.optimizer.add_param_group({"params": [("p", p)]})
    replica.give("a" if replica.rank == 0 else "b")
    p.grad = torch.randn_like(p)
    told = r"Process 1 takes no step.* Its error is Processes that average gradients.* of the same"
    replica.refused(RuntimeError, told if replica.rank == 2 else "process 0 has parameter `a`")
    return True


def test_a_disagreement_reaches_groups_that_come_later(world):
    assert all(world.run(overlap))


def strides(complex_):
    """Step twice with gradients that one process has transposed, and conjugated lazily."""
    dtype = torch.complex128 if complex_ else torch.float64
    group, manifold = group_of((0, 1)), LowRankUnitary(k=2)
    rank = distributed.get_rank()
    points = [manifold.random(N, N, dtype=dtype) for _ in range(2)]
    if rank > 1:
        return 0.0
    whole, own = (
        [geoopt.ManifoldParameter(x.clone(), manifold=manifold) for x in points] for _ in range(2)
    )
    sketch_gradients_(own, group)
    optimizers = [ProjUNNRiemannianSGD(params, lr=0.1, momentum=0.9) for params in (whole, own)]
    for _ in range(2):
        for i, (p, q) in enumerate(zip(whole, own, strict=True)):
            q.grad = torch.randn_like(q) * (1 + rank)
            p.grad = q.grad.clone()
            distributed.all_reduce(p.grad, group=group)
            p.grad /= 2
            if rank == i:
                q.grad = q.grad.mH.contiguous().mH
        for optimizer in optimizers:
            optimizer.step()
    return max(float((p - q).abs().max()) for p, q in zip(whole, own, strict=True))


@pytest.mark.parametrize("complex_", [False, True])
def test_gradients_may_have_other_strides_elsewhere(world, complex_):
    assert max(world.run(strides, complex_)) < 1e-12


def mixed():
    """Give one process's optimizer the matrices of two kinds in another order."""
    group, rank = group_of((0, 1)), distributed.get_rank()
    if rank > 1:
        return True
    manifolds = [LowRankUnitary(k=2), LowRankUnitary(k=1), LowRankUnitary(k=2)]
    torch.manual_seed(rank)
    params = [geoopt.ManifoldParameter(m.random(N, N), manifold=m) for m in manifolds]
    sketch_gradients_(params, group)
    first, *others = params
    optimizer = ProjUNNRiemannianSGD([first, *(others if rank == 0 else others[::-1])], lr=0.1)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    everywhere = [None] * 2
    distributed.all_gather_object(everywhere, digest(*params), group=group)
    return len(set(everywhere)) == 1


def test_matrices_of_two_kinds_get_their_own_values_in_any_order(world):
    """Of each kind the order is the same: the steps agree."""
    assert all(world.run(mixed))


def wait_for_nobody():
    """Take steps for which no process has the gradient of a matrix, and count the exchanges."""
    replica = Replica(3)
    if not replica.is_in:
        return [("allreduce_", 2)], 0.9
    replica.give("")
    replica.c.grad.fill_(1.0)
    with Traffic() as traffic:
        replica.optimizer.step()
    return traffic.seen, round(float(replica.c[0].detach()), 6)


def test_a_step_without_such_gradients_exchanges_two_numbers(world):
    assert world.run(wait_for_nobody) == [([("allreduce_", 2)], 0.9)] * 4


def skip(rule):
    """Disagree where the host does not read: the steps are skipped alike, and counted."""
    replica = Replica(2, rule)
    with pytest.MonkeyPatch.context() as patched:
        for module in (agreement, nonfinite, watch):
            patched.setattr(module, "reads_at_once", lambda t: False)
        if not replica.is_in:
            return None
        # All read at a first step, and know of themselves alone.
        replica.give("b" if replica.rank == 1 else "a")
        replica.refused(RuntimeError, "in the same order, but another process has others. Nothing")
        replica.give("ab")
        replica.optimizer.step()
        before, plain = replica.bits("ab"), replica.c.detach().clone()
        replica.give("b" if replica.rank == 1 else "a")
        replica.optimizer.step()
        skipped = replica.optimizer.skipped_steps
        for p in (replica.a, replica.b):
            replica.optimizer.state[p]["skipped"].zero_()
        unchanged = replica.bits("ab") == before and not torch.equal(replica.c, plain)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(50):
                replica.optimizer.step()
            replica.give("ab")
            replica.optimizer.step()
    return skipped, unchanged, [str(w.message) for w in caught], replica.is_alike()


@pytest.mark.parametrize("rule", RULES)
def test_where_the_host_does_not_read_steps_are_skipped_alike(world, rule):
    for skipped, unchanged, messages, alike in world.run(skip, rule)[:2]:
        # Of two blocks each counts.
        assert (skipped, unchanged, alike) == (2 if "blocks" in rule else 1, True, True)
        (message,) = messages
        assert "is not finite, or processes had gradients of different parameters" in message


def same(device_reads):
    """Take steps that read, or that do not, and return their bits."""
    replica = Replica(2, "wide, angle")
    if not replica.is_in:
        return None
    with pytest.MonkeyPatch.context() as patched:
        for module in (agreement, nonfinite, watch):
            patched.setattr(module, "reads_at_once", lambda t: device_reads)
        for _ in range(3):
            replica.give("ab")
            replica.optimizer.step()
    return replica.bits()


def test_the_step_is_the_same_whether_the_host_reads(world):
    assert world.run(same, True) == world.run(same, False)


def leave():
    """One process takes no step: the others have torch's error after the group's time-out."""
    soon = distributed.new_group([0, 1], timeout=datetime.timedelta(seconds=4))
    p = geoopt.ManifoldParameter(LowRankUnitary().random(N, N))
    fine = True
    if distributed.get_rank() < 2:
        sketch_gradients_(p, soon)
    if distributed.get_rank() == 0:
        optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
        p.grad, before = torch.ones_like(p), p.detach().clone()
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            optimizer.step()
        fine = torch.equal(p, before) and not optimizer.state
    distributed.barrier()
    return fine


def test_a_process_that_takes_no_step_is_the_time_out_of_the_group(world):
    assert all(world.run(leave))
