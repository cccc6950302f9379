"""The rank-k step of parameters on LowRankUnitary."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..linalg.batch import Pieces, gather, scatter
from ..linalg.dense import estimate_orthogonality_error
from ..linalg.directions import Direction
from ..manifold import LowRankUnitary
from ..sketches import Sketched
from .compiled import compiled, pays
from .rules import Buffers, UpdateRule
from .stacks import gather_states

# Matrices below this size spend their step in launching operations: stacking pays.
_STACK_BELOW = 256
# Of the points, for each thread: as large as point, direction and state may be in a cache of a few
# MiB. Smaller parts spend their step in launching operations.
_PART_BYTES = 4 * 2**20
# Relative to the sqrt(n) that ‖I‖ has; above the error of float32 data and of any init.
_OFF_MANIFOLD = 1e-4


def first_state(
    p: torch.Tensor, manifold: LowRankUnitary, rule: UpdateRule, group: Mapping[str, Any]
) -> Buffers:
    """Return the state of a parameter that has taken no step, after probing that it may.

    Raises
    ------
    ValueError
        If the parameter is not on the manifold: one probe of :math:`O(n^2)`.
    TypeError
        If its dtype is not supported.
    """
    manifold.assert_check_point(p)
    batch, n = p.shape[:-2], p.shape[-1]
    x = p.detach()
    if not x.is_meta and x.numel() > 0:
        error = float(estimate_orthogonality_error(x).max()) / math.sqrt(n)
        if not error <= _OFF_MANIFOLD:
            raise ValueError(
                f"A parameter of shape {tuple(p.shape)} on {manifold} must satisfy xᴴx = I "
                f"before its first step, but ‖xᴴx - I‖ / √n is about {error:.1e}; call "
                "`proj_()` on it under `torch.no_grad()`, or build it from `manifold.projx(x)`, "
                "to start from the nearest unitary matrix."
            )
    return {
        "step": torch.zeros(batch, dtype=torch.int64, device=x.device),
        # Of a floating dtype, which is what torch makes of it when a checkpoint is loaded.
        "skipped": torch.zeros(batch, dtype=x.real.dtype, device=x.device),
        **rule.first_buffers(x, group),
    }


def step_kind(
    members: list[torch.Tensor],
    states: Mapping[torch.Tensor, Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    """Step the parameters of one kind, small ones as a batch."""
    for stack in _stacks(members):
        _step_stack(stack, [states[p] for p in stack], rule, group)


def _step_stack(
    members: list[torch.Tensor],
    states: list[Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    manifold: LowRankUnitary = members[0].manifold  # type: ignore[attr-defined]
    grads: list[torch.Tensor] = [p.grad for p in members]  # type: ignore[misc]
    if not {p.data_ptr() for p in members}.isdisjoint([grad.data_ptr() for grad in grads]):
        # A gradient that is the point itself would turn with it.
        grads = [grad.clone() for grad in grads]
    buffers = gather_states(states, members[0].dim() - 2)
    take = compiled(step_) if group["compile"] and pays(manifold, members, grads) else step_
    at_once = not rule.withdrawn(group) and manifold.steps_whole(members, grads)
    if at_once or (count := _matrices_at_once(members)) is None:
        take(manifold, members, grads, buffers, rule, group=group)
    else:
        x, grad = gather(members), gather(grads)
        for start in range(0, len(x), count):
            part = slice(start, start + count)
            part_of_buffers = {name: buffer[part] for name, buffer in buffers.items()}
            take(manifold, [x[part]], [grad[part]], part_of_buffers, rule, group=group)
        scatter(x, members)
    for name, buffer in buffers.items():
        scatter(buffer, [state[name] for state in states])


def step_(
    manifold: LowRankUnitary,
    x: Pieces,
    grad: Pieces,
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
    x, grad : sequence of torch.Tensor
        b matrices, in tensors of one shape, (*, n, n)
    buffers : dict
        the state of :func:`first_state`, batch dimensions flattened to b
    rule : UpdateRule
        what makes a direction of a gradient
    group : mapping
        hyperparameters
    """
    taken = buffers["step"]
    proposal = rule.propose(grad, buffers, taken, group)
    direction: Direction | Sketched = proposal.direction
    length = group["lr"] if group["maximize"] else -group["lr"]
    withdrawn = rule.withdrawn(group)
    if withdrawn:
        whole, (along, _) = gather(x), proposal.direction.made(taken)
        direction = sketched = manifold.sketch_direction(whole, along, taken)
        for name, share in withdrawn.items():
            sketched.add_velocity_(proposal.buffers[name], whole, -share)

    finite = manifold.step_(x, direction, length, taken, proposal.is_finite(taken))
    proposal.commit_(buffers, finite)
    taken.add_(finite)
    buffers["skipped"].add_(~finite)


def _stacks(members: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Part the parameters of one kind into those that are stepped as one batch."""
    first, most = members[0], len(members)
    if first.shape[-1] >= _STACK_BELOW:
        most = 1
    elif most > 1 and (cache := _cache_of(first)):
        most = max(1, cache // max(1, first.numel() * first.element_size()))
    return [members[start : start + most] for start in range(0, len(members), most)]


def _matrices_at_once(stack: list[torch.Tensor]) -> int | None:
    """Return how many matrices of a large batch to step from product to product, None for all."""
    if len(stack) > 1 or stack[0].dim() == 2 or not (cache := _cache_of(stack[0])):
        return None
    b = math.prod(stack[0].shape[:-2])
    parts = min(b, round(stack[0].numel() * stack[0].element_size() / cache))
    # Of equal size: a small rest would launch as many operations as a full part.
    return -(-b // parts) if parts > 1 else None


def _cache_of(x: torch.Tensor) -> int:
    """Return how many bytes of points stay in a CPU's cache, 0 for a GPU."""
    return _PART_BYTES * torch.get_num_threads() if x.device.type == "cpu" else 0
