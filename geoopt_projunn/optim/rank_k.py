"""The rank-k step of parameters on LowRankUnitary."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..linalg.dense import estimate_orthogonality_error
from ..manifold import LowRankUnitary
from ..sketches import Sketched
from .compiled import compiled, pays
from .rules import Buffers, UpdateRule

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
    """
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


def step_group(
    parameters: Iterable[torch.Tensor],
    states: Mapping[torch.Tensor, Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    """Step all parameters on LowRankUnitary of one group; small ones of a kind as a batch."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    for p in parameters:
        stacks = p.shape[-1] < _STACK_BELOW
        alike = (p.shape, p.dtype, p.device, p.manifold, *states[p])  # type: ignore[attr-defined]
        kind = alike if stacks else id(p)
        kinds.setdefault(kind, []).append(p)
    for members in kinds.values():
        _step_stack(members, [states[p] for p in members], rule, group)


def _step_stack(
    members: list[torch.Tensor],
    states: list[Buffers],
    rule: UpdateRule,
    group: Mapping[str, Any],
) -> None:
    manifold: LowRankUnitary = members[0].manifold  # type: ignore[attr-defined]
    lead = members[0].dim() - 2
    x = _gather(members, lead)
    grad = _gather([p.grad for p in members], lead)  # type: ignore[misc]
    if grad.data_ptr() == x.data_ptr():
        # A gradient that is the point itself would turn with it.
        grad = grad.clone()
    buffers = {name: _gather([s[name] for s in states], lead) for name in states[0]}
    take = compiled(step_) if group["compile"] and pays(manifold, x, grad) else step_
    for part in _parts(x):
        part_of_buffers = {name: buffer[part] for name, buffer in buffers.items()}
        take(manifold, x[part], grad[part], part_of_buffers, rule, group=group)
    _scatter(x, members)
    for name, buffer in buffers.items():
        _scatter(buffer, [state[name] for state in states])


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
        the state of :func:`first_state`, batch dimensions flattened to b
    rule : UpdateRule
        what makes a direction of a gradient
    group : mapping
        hyperparameters
    """
    taken = buffers["step"]
    proposal = rule.propose(grad, buffers, taken, group)
    direction: torch.Tensor | Sketched = proposal.direction
    length = group["lr"] if group["maximize"] else -group["lr"]
    withdrawn = rule.withdrawn(group)
    if withdrawn:
        direction = sketched = manifold.sketch_direction(x, proposal.direction, taken)
        for name, share in withdrawn.items():
            sketched.add_velocity_(proposal.buffers[name], x, -share)

    finite = manifold.step_(x, direction, length, taken, proposal.is_finite())
    proposal.commit_(buffers, finite)
    taken.add_(finite)
    buffers["skipped"].add_(~finite)


def _parts(x: torch.Tensor) -> list[slice]:
    """Cut a large batch on a CPU into parts that stay in its cache from product to product."""
    parts = 1
    if x.device.type == "cpu":
        # Of equal size: a small rest would launch as many operations as a full part.
        bytes_of_x = x.numel() * x.element_size()
        parts = min(len(x), round(bytes_of_x / (_PART_BYTES * torch.get_num_threads())))
    count = max(1, -(-len(x) // max(1, parts)))
    return [slice(start, start + count) for start in range(0, max(len(x), 1), count)]


def _gather(tensors: list[torch.Tensor], lead: int) -> torch.Tensor:
    """View one tensor, or stack several, with its ``lead`` batch dimensions as one."""
    shape = tensors[0].shape
    tensor = tensors[0].detach() if len(tensors) == 1 else torch.stack(tensors)
    return tensor.reshape(len(tensors) * math.prod(shape[:lead]), *shape[lead:])


def _scatter(stacked: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Write back what :func:`_gather` took, unless it was a view."""
    if len(tensors) == 1 and stacked.data_ptr() == tensors[0].data_ptr():
        return
    parts = stacked.view(len(tensors), *tensors[0].shape).unbind(0)
    torch._foreach_copy_(tensors, list(parts))
