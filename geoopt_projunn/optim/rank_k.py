"""The rank-k step of parameters on LowRankUnitary and LowRankStiefel."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..backends import choose
from ..backends.distributed import averages_gradients, is_dtensor, like_its_parameter, local_of
from ..backends.spec import Buffers, Rule
from ..geometry.checks import upright
from .agreement import Rates
from .kinds import low_rank_of
from .options import on_device


def step_kinds(
    kinds: Iterable[list[torch.Tensor]],
    states: Mapping[torch.Tensor, Buffers],
    rule: Rule,
    group: Mapping[str, Any],
    rates: Rates,
) -> None:
    """Step parameters, those of one kind together; ``rates`` are those of an agreement."""
    kinds = list(kinds)
    addresses = [_address(p) for members in kinds for p in members]
    points = set(addresses)
    if len(points) < len(addresses):
        # Parameters that share memory are stepped one after the other.
        kinds = [[p] for members in kinds for p in members]
    grads = [[_apart(p.grad, points) for p in members] for members in kinds]
    names = ("step", "skipped", *rule.buffer_names(group))
    for members, grads_of_kind in zip(kinds, grads, strict=True):
        states_of_kind = [states[p] for p in members]
        buffers = {name: [state[name] for state in states_of_kind] for name in names}
        first = members[0]
        manifold = low_rank_of(first)
        if manifold.points(first) is not first:
            # What steps see of them are tall matrices, one by one.
            members = [like_its_parameter(manifold.points(p), p) for p in members]
            grads_of_kind = [manifold.points(grad) for grad in grads_of_kind]
            for name in names[2:]:
                buffers[name] = [upright(buffer) for buffer in buffers[name]]
        lr = on_device(group["lr"], first.device)
        if rates and (over := averages_gradients(first)) in rates:
            lr = lr * rates[over]
        unit = rule.unit(group, members[0].shape[-2] * members[0].shape[-1])
        options = {**group, "lr": lr if unit == 1 else lr * unit}
        spec = manifold.spec(members[0])
        if group["normalize"] is not None:
            spec = spec._replace(normalize=group["normalize"])
        choose(first).step_(members, grads_of_kind, buffers, rule, options, spec)


def _apart(grad: torch.Tensor | None, points: set[int]) -> torch.Tensor:
    """Return a copy of a gradient that is a point, and would turn with it."""
    assert grad is not None
    return grad.clone() if _address(grad) in points else grad


def _address(t: torch.Tensor) -> int:
    # A process may have an empty part, which shares no memory.
    return local_of(t).data_ptr() or id(t) if is_dtensor(t) else t.data_ptr()
