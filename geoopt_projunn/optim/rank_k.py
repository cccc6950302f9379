"""The rank-k step of parameters on LowRankUnitary."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch

from ..linalg.batch import gather, scatter
from ..linalg.extension import Refused
from ..manifold import LowRankUnitary
from ..sketches import Sketched
from .compiled import compiled, pays
from .options import on_device
from .rules import Buffers, UpdateRule

# Matrices below this size spend their step in launching operations: stacking pays.
_STACK_BELOW = 256
# Of the points, for each thread: as large as point, direction and state may be in a cache of a few
# MiB. Smaller parts spend their step in launching operations.
_PART_BYTES = 4 * 2**20


def step_kinds(
    kinds: Iterable[list[torch.Tensor]],
    states: Mapping[torch.Tensor, Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    """Step parameters on LowRankUnitary, those of one kind together."""
    kinds = list(kinds)
    addresses = [p.data_ptr() for members in kinds for p in members]
    points = set(addresses)
    if len(points) < len(addresses):
        # Who shares memory steps one after the other.
        kinds = [[p] for members in kinds for p in members]
    grads = [[_apart(p.grad, points) for p in members] for members in kinds]
    for members, grads_of_kind in zip(kinds, grads, strict=True):
        _step_kind(members, grads_of_kind, [states[p] for p in members], rule, group)


def _apart(grad: torch.Tensor | None, points: set[int]) -> torch.Tensor:
    """Return a copy of a gradient that is a point, and would turn with it."""
    assert grad is not None
    return grad.clone() if grad.data_ptr() in points else grad


def _step_kind(
    members: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: list[Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    manifold: LowRankUnitary = members[0].manifold  # type: ignore[attr-defined]
    names = ("step", "skipped", *rule.buffer_names(group))
    buffers = {name: [state[name] for state in states] for name in names}
    direction = rule.direction(grads, buffers, group)
    if direction is not None and manifold.steps_whole(members, grads):
        counts = buffers["step"], buffers["skipped"]
        # State that was loaded may lie in any way: what is refused is stacked.
        with suppress(Refused):
            return manifold.step_whole_(
                members, direction, _length(group, members[0].device), *counts
            )
    for stack in _stacks(members):
        _step_stack(
            manifold,
            members[stack],
            grads[stack],
            {name: pieces[stack] for name, pieces in buffers.items()},
            rule,
            group,
        )


def _step_stack(
    manifold: LowRankUnitary,
    members: list[torch.Tensor],
    grads: list[torch.Tensor],
    pieces: Mapping[str, list[torch.Tensor]],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    lead = members[0].dim() - 2
    x, grad = gather(members), gather(grads)
    buffers = {name: gather(each, lead) for name, each in pieces.items()}
    take = compiled(step_) if group["compile"] and pays(manifold, x, grad) else step_
    for part in _parts(x):
        part_of_buffers = {name: buffer[part] for name, buffer in buffers.items()}
        take(manifold, x[part], grad[part], part_of_buffers, rule, group=group)
    scatter(x, members)
    for name, buffer in buffers.items():
        scatter(buffer, pieces[name])


def step_(
    manifold: LowRankUnitary,
    x: torch.Tensor,
    grad: torch.Tensor,
    buffers: Buffers,
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    """Take one step with every matrix of a batch, in place.

    Where the gradient, the direction or the step is not finite, the matrix and its buffers
    stay as they are, bit for bit, and ``skipped`` counts one more; no value is read back.

    Parameters
    ----------
    manifold : LowRankUnitary
        rank, sketch, retraction and drift control
    x, grad : torch.Tensor
        (b, n, n)
    buffers : dict
        the state of :func:`.state.first_state`, batch dimensions flattened to b
    rule : UpdateRule
        what makes a direction of a gradient
    group : mapping
        hyperparameters
    """
    taken = buffers["step"]
    proposal = rule.propose(grad, buffers, taken, group)
    direction: torch.Tensor | Sketched = proposal.direction
    withdrawn = rule.withdrawn(group)
    if withdrawn:
        direction = sketched = manifold.sketch_direction(x, proposal.direction, taken)
        for name, share in withdrawn.items():
            sketched.add_velocity_(proposal.buffers[name], x, -share)

    finite = manifold.step_(
        x, direction, _length(group, x.device), taken, proposal.is_finite(taken)
    )
    proposal.commit_(buffers, taken, finite)
    taken.add_(finite)
    buffers["skipped"].add_(~finite)


def _length(group: Mapping[str, Any], device: torch.device) -> Any:
    """Return what a direction of ascent is multiplied with, on a device."""
    lr = on_device(group["lr"], device)
    return lr if group["maximize"] else -lr


def _stacks(members: list[torch.Tensor]) -> list[slice]:
    """Part the parameters of one kind into those that are stacked, small ones, for one step."""
    first, most = members[0], len(members)
    if first.shape[-1] >= _STACK_BELOW:
        most = 1
    elif cache := _cache_of(first):
        most = max(1, cache // max(1, first.numel() * first.element_size()))
    return [slice(start, start + most) for start in range(0, len(members), most)]


def _parts(x: torch.Tensor) -> list[slice]:
    """Cut a large batch on a CPU into parts that stay in its cache from product to product."""
    parts = 1
    if cache := _cache_of(x):
        # Of equal size: a small rest would launch as many operations as a full part.
        parts = min(len(x), round(x.numel() * x.element_size() / cache))
    count = max(1, -(-len(x) // max(1, parts)))
    return [slice(start, start + count) for start in range(0, max(len(x), 1), count)]


def _cache_of(x: torch.Tensor) -> int:
    """Return how many bytes of points stay in a CPU's cache, 0 for a GPU."""
    return _PART_BYTES * torch.get_num_threads() if x.device.type == "cpu" else 0
