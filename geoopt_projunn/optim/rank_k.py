"""The rank-k step of parameters on LowRankUnitary and LowRankStiefel."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..backends import choose
from ..backends.distributed import (
    averages_gradients,
    is_dtensor,
    is_spread,
    like_its_parameter,
    local_of,
)
from ..backends.spec import Rule
from ..geometry.checks import upright
from .agreement import Rates
from .kinds import Members, low_rank_of
from .options import is_zero, on_device
from .settled import Begun


def step_kinds(
    kinds: Collection[Members],
    rule: Rule,
    group: Mapping[str, Any],
    rates: Rates,
    begun: Begun,
) -> list[Members]:
    """Step parameters, those of one kind together; ``rates`` are those of an agreement.

    Return those of which some may have skipped the step.
    """
    unsure = []
    addresses = [address for members in kinds for address in _addresses(members.params)]
    points = set(addresses)
    if len(points) < len(addresses):
        # Parameters that share memory are stepped one after the other.
        single = [of_one for members in kinds for of_one in zip(*members, strict=True)]
        kinds = [Members([p], [grad], [state]) for p, grad, state in single]
    apart = [_apart(members.grads, points) for members in kinds]
    names = ("step", "skipped", *rule.buffer_names(group))
    # Asked once a group: this runs in every step, and few rates are zero.
    has_no_length = is_zero(group["lr"])
    may_stay = has_no_length or False in begun.values()
    for members, grads in zip(kinds, apart, strict=True):
        params, _, states = members
        buffers = {name: [state[name] for state in states] for name in names}
        first = params[0]
        manifold = low_rank_of(first)
        if manifold.points(first) is not first:
            # What steps see of them are tall matrices, one by one.
            params = [like_its_parameter(manifold.points(p), p) for p in params]
            grads = [manifold.points(grad) for grad in grads]
            for name in names[2:]:
                buffers[name] = [upright(buffer) for buffer in buffers[name]]
        lr = on_device(group["lr"], first.device)
        if rates and (over := averages_gradients(first)) in rates:
            lr = lr * rates[over]
        point = params[0]
        unit = rule.unit(group, point.shape[-2] * point.shape[-1])
        lr = lr if unit == 1 else lr * unit
        options = group if lr is group["lr"] else {**group, "lr": lr}
        spec = manifold.spec(point, group["normalize"])
        if may_stay and all(_stays(p, begun, has_no_length) for p in members.params):
            # Not a bit may change: to fill the state, torch takes such a step after a load.
            spec = spec._replace(sweep=0)
        if not choose(first).step_(params, grads, buffers, rule, options, spec):
            unsure.append(members)
    return unsure


def _stays(p: torch.Tensor, begun: Begun, has_no_length: bool) -> bool:
    """Return whether a step is known to have no length, on all processes that have parts of p."""
    # At a first step they have compared it. Later each knows only its own rate, and a step takes
    # the largest: who left out the sweep alone would make other exchanges.
    return begun.get(p) is False or (has_no_length and not is_spread(p))


def _apart(grads: list[torch.Tensor], points: set[int]) -> list[torch.Tensor]:
    """Copy gradients that are parameters themselves, which the step would change."""
    addresses = _addresses(grads)
    if points.isdisjoint(addresses):
        return grads
    return [grad.clone() if a in points else grad for grad, a in zip(grads, addresses, strict=True)]


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return where tensors are, all of which are DTensors if the first one is."""
    if is_dtensor(tensors[0]):
        # A process may have an empty part, which shares no memory.
        return [local_of(t).data_ptr() or id(t) for t in tensors]
    return [t.data_ptr() for t in tensors]
