"""Processes that average gradients step the same parameters, or none."""

import datetime

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import sketch_gradients_

from ._averaging import MOMENTUM, RULES, N, Replica, group_of


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


def choose():
    """One process has another option."""
    replica = Replica(3)
    if not replica.is_in:
        return True
    replica.give("ab")
    if replica.rank == 1:
        replica.optimizer.param_groups[0]["normalize"] = "angle"
    words = "process 0, 2 has .*`a` .*, with `normalize` = None, .* process 1 has .* = 'angle'"
    replica.refused(RuntimeError, words)
    replica.optimizer.param_groups[0]["normalize"] = None
    replica.optimizer.step()
    return replica.is_alike()


def test_another_option_is_an_error_on_all_processes(world):
    assert all(world.run(choose))


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
        "Process 0 cannot take this step, .* Its error is ValueError: Parameter `a` .* must",
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
        replica.refused(RuntimeError, "Process 1 cannot .* TypeError: `grad` of par.* `c`")
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
    replica.refused(RuntimeError, r"process 0 has .*`a` .*, at its first step, .* process 1 has")
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
    told = r"Process 1 cannot .* Its error is Processes that average gradients.* of the same"
    replica.refused(RuntimeError, told if replica.rank == 2 else "process 0 has parameter `a`")
    return True


def test_a_disagreement_reaches_groups_that_come_later(world):
    assert all(world.run(overlap))


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
