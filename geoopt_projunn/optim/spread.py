"""Parameters that lie on several processes: what they may be, how their state lies, who agrees."""

from collections.abc import Mapping
from typing import Any

import torch
from geoopt.manifolds.base import Manifold

from ..backends.distributed import (
    averages_gradients,
    from_part,
    is_dtensor,
    local_of,
    mean_over,
    misplacement,
    placements_of_batch,
)
from ..backends.spec import Buffers, Rule, StepSpec
from ..sketches.coordinates import COORDINATES
from .agreement import Agreement
from .kinds import Groups, low_rank_of
from .messages import capitalized, described
from .nonfinite import States

LINEAR_SKETCHES = ("tangent", "lsi")
"""Those whose products with the gradient are linear in it."""


def check_spread(p: torch.Tensor, state: Buffers, rule: Rule, group: Mapping[str, Any]) -> None:
    """Raise an error unless processes can step a parameter together.

    Raises
    ------
    TypeError
        If one of a parameter, its gradient and its state is a DTensor and another is not.
    ValueError
        If they lie in different ways, or in one that steps do not know.
    RuntimeError
        If the gradient is to be averaged by a step that needs all of it.
    """
    grad, name, manifold = p.grad, described(p, group), low_rank_of(p)
    assert grad is not None
    if is_dtensor(p) != is_dtensor(grad):
        raise TypeError(
            f"`grad` of {name} must be a {'DTensor' if is_dtensor(p) else 'plain tensor'} like it, "
            f"got {type(grad).__name__}; use the gradient that `backward` leaves there, or "
            "`torch.distributed.tensor.distribute_tensor`."
        )
    is_spread = is_dtensor(p) or averages_gradients(p) is not None
    if is_spread and rule.tangent_momentum(group) is not None:
        raise ValueError(
            f'`momentum_space` of {name} must be "ambient" for a parameter that lies on several '
            f"processes, or whose gradients do, got {group['momentum_space']!r}; give it a group "
            "of its own."
        )
    if is_spread and manifold.sketch == COORDINATES:
        raise ValueError(
            f'{capitalized(name)} must have another `sketch` than "coordinates", as it lies on '
            'several processes, or its gradients do; take the default, "tangent".'
        )
    if not is_dtensor(p):
        if averages_gradients(p) is not None:
            _check_averaged(p, rule, manifold.spec(manifold.points(p)), group)
        return
    reason = misplacement(p, manifold.rank(p), manifold.blocks)
    if reason is not None:
        raise ValueError(
            f"{capitalized(name)} {reason}, got {_placed(p)}; distribute it anew, or keep it out "
            "of `fully_shard` by `ignored_params`, and average its gradient."
        )
    if grad.device_mesh != p.device_mesh:  # type: ignore[attr-defined]
        raise ValueError(
            f"`grad` of {name} must be on its mesh, {_mesh(p)}, got {_mesh(grad)}; "
            "distribute both alike."
        )
    x = manifold.stacked(p.detach())
    for key in ("step", "skipped", *rule.buffer_names(group)):
        buffer = state.get(key)
        if buffer is not None and not _lies_like(buffer, x):
            raise ValueError(
                f"`{key}` in the state of {name} must be placed as it is, {_placed(p)}, got "
                f"{_placed(buffer)}; load it by `set_optimizer_state_dict` of "
                "torch.distributed.checkpoint.state_dict."
            )


def check_is_whole(p: torch.Tensor, manifold: Manifold, group: Mapping[str, Any]) -> None:
    """Raise TypeError for a DTensor on another manifold: geoopt would take Euclidean steps."""
    if is_dtensor(p):
        raise TypeError(
            f"{capitalized(described(p, group))} on {manifold} must be whole on every process, "
            "got a DTensor, which geoopt's optimizers take for a plain parameter; keep it out of "
            "`fully_shard` by `ignored_params`, and average its gradient."
        )


def _check_averaged(p: torch.Tensor, rule: Rule, spec: StepSpec, group: Mapping[str, Any]) -> None:
    if rule.is_linear and spec.k is not None and spec.sketch in LINEAR_SKETCHES:
        return
    got = "Adam" if not rule.is_linear else f"k={spec.k}, sketch={spec.sketch!r}"
    raise RuntimeError(
        f"Steps of {described(p, group)} average products with its gradient, as "
        "`sketch_gradients_` asked, which needs ProjUNNRiemannianSGD, a finite `k` and the sketch "
        f"'tangent' or 'lsi', got {got}; use these, or do not pass the "
        "parameter to it and let DistributedDataParallel average its gradient."
    )


# Steps outside of torch's inference mode could not write to what is made in it.
@torch.inference_mode(False)
def first_buffers(p: torch.Tensor, rule: Rule, group: Mapping[str, Any]) -> Buffers:
    """Return the state of a rule for a fresh parameter; zeros that lie like a DTensor."""
    if not is_dtensor(p):
        return rule.first_buffers(p, group)
    shapes = rule.first_buffers(torch.empty(p.shape, dtype=p.dtype, device="meta"), group)
    return {name: full_like(p, t.shape, 0, t.dtype) for name, t in shapes.items()}


@torch.inference_mode(False)
def full_like(p: torch.Tensor, shape: torch.Size, value: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that begins with the batch dimensions of a parameter, and lies like it."""
    local, placements = local_of(p), _placements_of(p, shape)
    if placements is None:
        return torch.full(shape, value, dtype=dtype, device=local.device)
    lead = p.dim() - 2
    own = local.shape if shape == p.shape else (*local.shape[:lead], *shape[lead:])
    # One number, which needs no memory of its own.
    part = torch.full((), value, dtype=dtype, device=local.device).expand(own)
    whole: torch.Tensor = from_part(part, p, placements, shape)
    return whole


def average_buffers(groups: Groups, states: States, rule: Rule) -> None:
    """Average what processes have made of their own gradients, in place, after they have agreed."""
    marked = [g for g in groups if any(averages_gradients(p) is not None for p in g["params"])]
    groups = [group for group in marked if rule.buffer_names(group)]
    Agreement(groups).on_states(states)
    for p in (p for group in groups for p in group["params"]):
        if (over := averages_gradients(p)) is None or p.is_meta:
            continue
        for buffer in states.get(p, {}).values():
            if isinstance(buffer, torch.Tensor) and buffer.numel() == p.numel():
                buffer.copy_(mean_over(buffer.clone(), over))


def _placements_of(p: torch.Tensor, shape: torch.Size) -> list[Any] | None:
    """Return how a tensor of the state lies, None for one that every process has as a whole."""
    if is_dtensor(p) and shape == p.shape:
        return list(p.placements)  # type: ignore[attr-defined]
    return placements_of_batch(p)


def _lies_like(buffer: torch.Tensor, p: torch.Tensor) -> bool:
    placements = _placements_of(p, buffer.shape)
    if placements is None:
        return not is_dtensor(buffer)
    if not is_dtensor(buffer) or list(buffer.placements) != placements:  # type: ignore[attr-defined]
        return False
    return bool(buffer.device_mesh == p.device_mesh)  # type: ignore[attr-defined]


def _placed(t: Any) -> str:
    return f"{t.placements} on {_mesh(t)}" if is_dtensor(t) else "a tensor that is whole"


def _mesh(t: Any) -> str:
    return f"a mesh of shape {tuple(t.device_mesh.shape)}"
