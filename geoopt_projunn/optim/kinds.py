"""Sort the parameters of a group by how they are stepped."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from geoopt.manifolds.base import Manifold

from ..backends.distributed import is_dtensor, is_spread
from ..low_rank_manifold import LowRankManifold
from ..manifolds import LowRankStiefel, LowRankUnitary
from .messages import described

State = Mapping[str, torch.Tensor]
# Of an abstract class the check takes longer than of the very class.
_LOW_RANK = (LowRankUnitary, LowRankStiefel, LowRankManifold)
_ANY = (*_LOW_RANK, Manifold)


@dataclass
class Parts:
    """The parameters of a group: those of low-rank steps by kind, and all others."""

    low_rank: dict[Hashable, list[torch.Tensor]] = field(default_factory=dict)
    riemannian: list[torch.Tensor] = field(default_factory=list)
    plain: list[torch.Tensor] = field(default_factory=list)

    def low_rank_parameters(self) -> list[torch.Tensor]:
        """Return those of low-rank steps, all of which have a gradient."""
        return [p for members in self.low_rank.values() for p in members]

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
    manifold = manifold_of(p)
    assert is_low_rank(manifold)
    return manifold


def stacked(p: torch.Tensor) -> torch.Tensor:
    """View the blocks of a parameter as a batch, as its state has them."""
    return low_rank_of(p).stacked(p.detach())


def kind_of(
    p: torch.Tensor, grad: torch.Tensor, manifold: LowRankManifold, state: State
) -> Hashable:
    """Return what parameters have in common that can be stepped as one batch.

    All that :func:`check_kind` looks at is part of it.
    """
    spread = is_spread(p) or is_dtensor(grad)
    layout = p.shape, p.stride(), p.is_conj(), grad.stride(), grad.is_conj(), spread
    return layout, p.dtype, p.device, manifold, grad.dtype, state["skipped"].dtype, *state


def check_kind(p: torch.Tensor, state: State, group: Mapping[str, Any]) -> None:
    """Raise an error unless a parameter of a kind can be stepped, with its gradient and state.

    Raises
    ------
    ValueError
        If the shape is none of the manifold, or the rank is too high for it.
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
    # What may have changed since the first step.
    if not manifold.check_point(p):
        manifold.assert_check_point(p)
    if state["skipped"].dtype != p.dtype.to_real():
        raise TypeError(
            f"The state of {described(p, group)} must have its precision, "
            f"{p.dtype.to_real()}, got {state['skipped'].dtype}: the parameter was converted "
            "after its first step; rebuild the optimizer."
        )
