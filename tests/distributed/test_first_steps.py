"""Processes that share parameters compare what they are about to do, before a first step."""

import copy

import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.optim.plans import OPTIONS

from ._sharing import Sharer, of_four, of_two
from ._traffic import Traffic

# What the second process has in its manifold, and in the group, and what the message says.
OTHERS = {
    "k": ({"k": 3}, {}, r"`a` of shape \(12, 12\), with `k` = 2, .* 1 has .*`a` .*`k` = 3,"),
    "auto": ({"k": "auto"}, {}, r"with `k` = 2, .* process 1 has .* with `k` = 6,"),
    "sketch": ({"sketch": "lsi"}, {}, r"`sketch` = 'tangent', .* 1 has .*`sketch` = 'lsi'"),
    "sweep": ({"sweep": 3}, {}, "`sweep` = 1, .* process 1 has .*`sweep` = 3"),
    "retraction": ({"retraction": "cayley"}, {}, "`retraction` = 'expon.* 1 has .*'cayley'"),
    "stabilize": ({}, {"stabilize": 1}, "`stabilize` = None.* has .*`stabilize` = 1 after 0 st"),
    "when": ({}, {"stabilize": 3, "step": 2}, "`stabilize` = None.* `stabilize` = 3 after 2 st"),
    "skip": ({}, {"skip_nonfinite": "all"}, "the optimizer, without `skip_n.* 1 has .*, with `sk"),
    "normalize": ({}, {"normalize": "angle"}, "`normalize` = None, .* has .* = 'angle'"),
    "maximize": ({}, {"maximize": True}, "`maximize` = False, .* has .*`maximize` = True"),
    "momentum": ({}, {"momentum": 0.9}, "`momentum` = 0.0, .* 1 has .*`momentum` = 0.9"),
    "rate": ({}, {"lr": 0.0}, "at its first step, .* 1 has .*`a` .*first step, with `lr` = 0"),
}
REMEDY = r".*\. Nothing has changed\. Build the model and the optimizer by the same code, with the"


def differ(name):
    """Let the second process have another option, and then the same one."""
    mesh, (config, options, words) = of_two(), OTHERS[name]
    if mesh is None:
        return True
    one, whole = Sharer(mesh), Sharer(mesh)
    expected = whole.step()
    if distributed.get_rank() == 1:
        one.a.manifold = one.b.manifold = LowRankUnitary(**{"k": 2, **config})
        before = {name: one.group.get(name, 0) for name in options}
        one.group.update(options)
    for _ in range(2):
        one.refused(RuntimeError, "share parameters .* but process 0 has .*" + words + REMEDY)
    if distributed.get_rank() == 1:
        one.a.manifold = one.b.manifold = LowRankUnitary(k=2)
        one.group.update(before)
    return all(map(torch.equal, one.step(), expected))


@pytest.mark.parametrize("name", OTHERS)
def test_another_option_is_an_error_on_all_processes(world, name):
    assert all(world.run(differ, name))


def lack():
    """The second process has no gradient of one of two matrices, then of both; then one more."""
    mesh = of_two()
    if mesh is None:
        return True
    one, is_second = Sharer(mesh), distributed.get_rank() == 1
    words = r"process 0 has .*`b` of shape \(12, 12\); process 1 has .*`b` .*, without a gradient\."
    for names in ("a", ""):
        one.give(names if is_second else "ab")
        one.refused(RuntimeError, words)
    one.give("a")
    one.step()
    # At the first step of one, which comes after that of the other.
    one.give("a" if is_second else "ab")
    one.refused(RuntimeError, words)
    one.give("ab")
    one.step()
    # And after a load.
    one.optimizer.load_state_dict(one.optimizer.state_dict())
    one.give("a" if is_second else "ab")
    one.refused(RuntimeError, words)
    one.give("ab")
    before = one.a.full_tensor()
    return not torch.equal(one.step()[0], before)


def test_a_gradient_that_one_process_lacks_is_an_error_on_all(world):
    assert all(world.run(lack))


def count():
    """The second process loads a state that has counted other steps; then both load the same."""
    mesh = of_two()
    if mesh is None:
        return True
    one = Sharer(mesh)
    one.give("ab")
    one.step()
    saved = one.optimizer.state_dict()
    other = copy.deepcopy(saved)
    other["state"][0]["step"] += 3
    one.optimizer.load_state_dict(other if distributed.get_rank() == 1 else saved)
    one.give("ab")
    one.refused(RuntimeError, r", after 1 step; process 1 has .*, after 4 steps\.")
    one.optimizer.load_state_dict(saved)
    before = one.a.full_tensor()
    return not torch.equal(one.step()[0], before)


def test_other_counts_of_steps_are_an_error_on_all_processes(world):
    """They choose the columns that a sketch looks at."""
    assert all(world.run(count))


def build():
    """Build something else on the second process."""
    mesh = of_two()
    if mesh is None:
        return None
    messages = []
    others = [{"swap": True}, {"kind": ProjUNNRiemannianAdam}, {"a": None}]
    for other in others:
        one = Sharer(mesh, **(other if distributed.get_rank() == 1 and "a" not in other else {}))
        if distributed.get_rank() == 1 and "a" in other:
            one.a.manifold = None
        with pytest.raises(RuntimeError) as info:
            one.optimizer.step()
        assert not one.optimizer.state
        messages.append(str(info.value))
    return messages


def test_other_orders_classes_and_manifolds_are_an_error_on_all_processes(world):
    first, second, *_ = world.run(build)
    assert first == second
    order, kind, manifold = first
    assert "they have them in different orders" in order
    assert "the optimizer, ProjUNNRiemannianSGD, " in kind
    assert "process 1 has the optimizer, ProjUNNRiemannianAdam, " in kind
    assert "process 1 has parameter `a` of shape (12, 12), on no manifold." in manifold


def fail():
    """One process finds an error of its own: before they compare, and where points are probed."""
    mesh = of_two()
    if mesh is None:
        return True
    one = Sharer(mesh, weight_decay=0.1)
    told = "Process {} cannot take this step, so .* shares parameters .* Its error is {}"
    is_second = distributed.get_rank() == 1
    if is_second:
        one.c.grad = one.c.grad.to_sparse()
    own = "`grad` of parameter `c` of shape .* must be dense"
    error, words = (
        (TypeError, own) if is_second else (RuntimeError, told.format(1, "TypeErr.*" + own))
    )
    one.refused(error, words)
    one.give("ab")
    c = torch.nn.Parameter(torch.eye(4) * (1 if is_second else 2))
    c.manifold, c.grad = LowRankUnitary(), torch.ones(4, 4)
    # Before the others: they are probed all the same.
    one.optimizer.param_groups.insert(0, {**one.group, "params": [c], "param_names": ["d"]})
    own = "Parameter `d` .* must satisfy xᴴx = I before its first step"
    error, words = (
        (RuntimeError, told.format(0, "ValueE.*" + own)) if is_second else (ValueError, own)
    )
    one.refused(error, words)
    with torch.no_grad():
        c.copy_(torch.eye(4))
    before = one.a.full_tensor()
    return not torch.equal(one.step()[0], before)


def test_an_error_of_one_process_ends_the_first_step_of_all(world):
    assert all(world.run(fail))


def spread():
    """The last of four processes differs in what two, or all of them share."""
    both, second = of_four()
    one, is_last = Sharer(both), distributed.get_rank() == 3
    if is_last:
        one.b.manifold = LowRankUnitary(k=3)
    words = "process 0, 1, 2 has parameter `b` of .*, with `k` = 2; process 3 has .* with `k` = 3"
    one.refused(RuntimeError, words)
    one.b.manifold = LowRankUnitary(k=2)
    # Processes 2 and 3 share another one, and so do 0 and 1.
    other = Sharer(second)
    one.optimizer.add_param_group({"params": [("d", other.a)], "maximize": is_last})
    told = "Process 2 cannot take this step.* but process 2 has parameter `d` .*`maximize` = False"
    own = "but process 2 has parameter `d` .*`maximize` = False; process 3 has .* = True"
    one.refused(RuntimeError, told if distributed.get_rank() < 2 else own)
    one.optimizer.param_groups[1]["maximize"] = False
    before = one.a.full_tensor()
    return not torch.equal(one.step()[0], before)


def test_all_processes_of_a_mesh_of_two_dimensions_learn_of_a_difference(world):
    assert world.run(spread) == [True] * 4


def later(trained):
    """Count the exchanges of a second step beside a matrix that has no gradient."""
    mesh = of_two()
    if mesh is None:
        return 14 + trained
    one = Sharer(mesh, momentum=0.9)
    one.b.requires_grad_(trained)
    one.give("a")
    one.step()
    one.give("a")
    with Traffic() as traffic:
        one.optimizer.step()
    return len(traffic.seen)


@pytest.mark.parametrize("trained", [False, True])
def test_later_steps_compare_nothing_unless_a_first_step_is_to_come(world, trained):
    """As many as in tests of costs, and one while a trained matrix had no gradient."""
    assert world.run(later, trained) == [14 + trained] * 4


def begin_at_zero():
    """Take a first step of length zero, after which points are probed at the next one."""
    mesh = of_two()
    if mesh is None:
        return True
    one, is_second = Sharer(mesh, lr=0.0), distributed.get_rank() == 1
    one.step()
    one.group["lr"] = 0.0 if is_second else 0.1
    one.refused(RuntimeError, "at its first step, .* process 1 has .*first step, with `lr` = 0")
    one.group["lr"] = 0.1
    before = one.a.full_tensor()
    return not torch.equal(one.step()[0], before)


def test_a_rate_of_zero_at_first_is_fine_on_all_processes(world):
    assert all(world.run(begin_at_zero))


@pytest.mark.parametrize("kind", [ProjUNNRiemannianSGD, ProjUNNRiemannianAdam])
def test_all_options_are_compared_that_matter_to_steps_of_parts(kind):
    optimizer = kind([torch.nn.Parameter(torch.ones(3))])
    of_others = {"weight_decay", "decoupled_weight_decay", "foreach", "fused", "capturable"}
    # Rates are agreed on in each step, and steps of parts are not compiled.
    assert {"params", "lr", "compile", *of_others, *OPTIONS} >= optimizer.param_groups[0].keys()
