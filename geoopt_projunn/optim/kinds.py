"""Sort the parameters of a group by how they are stepped."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import torch
from geoopt.manifolds.base import Manifold

from ..backends.distributed import averages_gradients, is_dtensor
from ..geometry.checks import without_x
from ..linalg.precision import WIDE
from ..low_rank_manifold import LowRankManifold
from ..manifolds import LowRankStiefel, LowRankUnitary
from .messages import capitalized, described

State = Mapping[str, torch.Tensor]
Group = Mapping[str, Any]
Groups = list[dict[str, Any]]
# The concrete classes first: isinstance takes longer for an abstract one.
_LOW_RANK = (LowRankUnitary, LowRankStiefel, LowRankManifold)
_ANY = (*_LOW_RANK, Manifold)
_COMPLEX = {torch.complex32, torch.complex64, torch.complex128}


class Members(NamedTuple):
    """Parameters of one kind, which can be stepped as one batch, with gradients and states."""

    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    states: list[dict[str, Any]]


@dataclass
class Parts:
    """The parameters of a group: those of low-rank steps by kind, and all others."""

    low_rank: dict[Hashable, Members] = field(default_factory=dict)
    riemannian: list[torch.Tensor] = field(default_factory=list)
    plain: list[torch.Tensor] = field(default_factory=list)

    def low_rank_parameters(self) -> list[torch.Tensor]:
        """Return those of low-rank steps, all of which have a gradient."""
        return [p for members in self.low_rank.values() for p in members.params]

    def others(self) -> list[torch.Tensor]:
        """Return all others that have a gradient."""
        return [p for p in (*self.plain, *self.riemannian) if p.grad is not None]

    def clear(self) -> None:
        """Forget all of them."""
        for members in (self.low_rank, self.riemannian, self.plain):
            members.clear()


def manifold_of(p: torch.Tensor) -> Manifold | None:
    """Return the manifold of a parameter, None for a plain one."""
    # Not isinstance(p, ManifoldParameter): it folds to False under torch.compile.
    manifold = getattr(p, "manifold", None)
    return manifold if isinstance(manifold, _ANY) else None


def is_low_rank(manifold: Manifold | None) -> TypeGuard[LowRankManifold]:
    """Return whether a manifold is one of those whose steps are taken here."""
    return isinstance(manifold, _LOW_RANK)


def low_rank_of(p: torch.Tensor) -> LowRankManifold:
    """Return the manifold of a parameter that is on one of those."""
    manifold = getattr(p, "manifold", None)
    assert isinstance(manifold, _LOW_RANK)
    return manifold


def stacked(p: torch.Tensor) -> torch.Tensor:
    """View the blocks of a parameter as a batch, as its state has them."""
    return low_rank_of(p).stacked(p.detach())


def kind_of(
    p: torch.Tensor,
    grad: torch.Tensor,
    manifold: LowRankManifold,
    state: State,
    names: tuple[str, ...],
) -> Hashable:
    """Return what parameters have in common that can be stepped as one batch.

    ``names`` are those of their buffers. All that :func:`check_kind` looks at is part of it.
    """
    # This runs in every step for each parameter. One flat tuple, a set of dtypes, and no list where
    # there are no names take a third less time than what reads better.
    dtype, skipped, over = p.dtype, state["skipped"], averages_gradients(p)
    is_lazy = None
    if dtype in _COMPLEX:
        is_lazy = p.is_conj(), over is None and grad.is_conj()
    # They differ where a parameter has got values of another size since its last step.
    shapes: tuple[torch.Size | None, ...] = ()
    if names:
        shapes = tuple([state[name].shape if name in state else None for name in names])
    return (
        p.shape,
        p.stride(),
        grad.shape,
        # Gradients of one parameter may have other strides on other processes.
        grad.stride() if over is None else over,
        # DTensors are types of their own.
        type(p),
        type(grad),
        dtype,
        grad.dtype,
        is_lazy,
        p.device,
        manifold,
        names,
        shapes,
        skipped.dtype,
        skipped.device,
        skipped.shape,
    )


def check_kind(p: torch.Tensor, state: State, names: Iterable[str], group: Group) -> None:
    """Raise an error unless a parameter of a kind can be stepped, with its gradient and state.

    ``names`` are those of its buffers.

    Raises
    ------
    ValueError
        If the shape is none of the manifold, the rank is too high for it, the gradient or the state
        is of a parameter of another shape or number of blocks, or the state on another device.
    TypeError
        If the dtype of parameter, gradient or state is not supported.
    """
    grad, manifold = p.grad, low_rank_of(p)
    assert grad is not None
    if grad.dtype != p.dtype:
        raise TypeError(
            f"`grad` of {described(p, group)} must have its dtype, {p.dtype}, "
            f"got {grad.dtype}; convert it with `p.grad = p.grad.to(p.dtype)`."
        )
    check_grad(p, grad, group)
    # What may have changed since the first step.
    check_is_point(p, manifold, group)
    if state["skipped"].dtype != p.dtype.to_real():
        raise TypeError(
            f"The state of {described(p, group)} must have its precision, "
            f"{p.dtype.to_real()}, got {state['skipped'].dtype}: the parameter was converted "
            "after its first step; make a new optimizer."
        )
    for name in ("skipped", "step", *names):
        if name in state and state[name].device != p.device:
            raise ValueError(
                f"`{name}` in the state of {described(p, group)} must be on its device, "
                f"{p.device}, got {state[name].device}: the parameter was moved after its first "
                "step; call `optimizer.load_state_dict(optimizer.state_dict())`, which moves it."
            )
    check_shapes(p, state, names, group)


def check_is_point(p: torch.Tensor, manifold: LowRankManifold, group: Group) -> None:
    """Raise an error unless dtype, shape and memory are those of a parameter on a manifold.

    Raises
    ------
    TypeError
        If the dtype is not supported.
    ValueError
        If the shape is none of the manifold, the rank is too high for it, or entries share memory,
        as after ``expand``.
    """
    is_point, reason = manifold.check_point(p, explain=True)
    if not is_point:
        what = f"{capitalized(described(p, group))} cannot be on the {manifold}"
        kind = ValueError if p.dtype in WIDE else TypeError
        raise kind(f"{what}: {without_x(reason)}")
    if not is_dtensor(p) and _overlaps(p):
        raise ValueError(
            f"{capitalized(described(p, group))} must have memory of its own for each entry, got "
            f"strides {p.stride()}, as `expand` makes them; write `p.data = p.data.contiguous()`."
        )


def _overlaps(p: torch.Tensor) -> bool:
    """Return whether two entries may be the same number in memory."""
    reach = 0
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1 and stride <= reach:
            return p.numel() > 0
        reach += (size - 1) * stride
    return False


def check_grad(p: torch.Tensor, grad: torch.Tensor, group: Group) -> None:
    """Raise ValueError for a gradient that is older than values of another shape."""
    if grad.shape != p.shape:
        raise ValueError(
            f"`grad` of {described(p, group)} must have its shape, got {tuple(grad.shape)}: it was "
            "made before the parameter got other values; call `zero_grad()` after such a change."
        )


def check_shapes(p: torch.Tensor, state: State, names: Iterable[str], group: Group) -> None:
    """Raise ValueError unless a state has the shapes of this parameter's."""
    shape = stacked(p).shape
    for name in ("skipped", "step"):
        check_shape(name, p, state, group, shape[:-2])
    for name in names:
        if name in state:
            # One number for each entry, or one for each matrix.
            check_shape(name, p, state, group, shape, torch.Size((*shape[:-2], 1, 1)))


def check_shape(
    name: str, p: torch.Tensor, state: State, group: Group, *shapes: torch.Size
) -> None:
    """Raise ValueError unless an entry of the state has one of these shapes."""
    if state[name].shape not in shapes:
        raise ValueError(
            f"`{name}` in the state of {described(p, group)} must have shape {tuple(shapes[0])}, "
            f"got {tuple(state[name].shape)}: the state is that of a parameter of another shape "
            "or with another number of blocks; load the right one, or make a new optimizer."
        )


def check_unit(p: torch.Tensor, manifold: Manifold, group: Mapping[str, Any]) -> None:
    """Raise ValueError if geoopt would step by lr what is to turn by that many radians."""
    if group["normalize"] is None:
        return
    if _holds_low_rank(manifold):
        raise ValueError(
            f"`normalize` must be None for {described(p, group)} on {manifold}, which geoopt steps "
            f"without it, got {group['normalize']!r}; put it into a group of its own, or directly "
            "on LowRankUnitary or LowRankStiefel."
        )


def _holds_low_rank(manifold: Any) -> bool:
    # Of geoopt.Scaled and of geoopt.ProductManifold, which may hold each other.
    inside = getattr(manifold, "base", None), *(getattr(manifold, "manifolds", None) or ())
    return any(is_low_rank(one) or _holds_low_rank(one) for one in inside if one is not None)
