"""Which manifold a weight of a given shape belongs on, where it starts, and what is said of it."""

from collections.abc import Sequence
from typing import Any

import torch

from ..arguments import assert_known
from ..backends.distributed import is_dtensor, place_like
from ..geometry.checks import without_x
from ..init import INITS
from ..low_rank_manifold import LowRankManifold, Rank, low_rank_manifold_of
from ..manifolds import LowRankStiefel, LowRankUnitary

RECTANGULAR = ("identity", "haar")
"""The initial matrices that need not be square."""


def manifold_for(
    shape: Sequence[int],
    k: Rank,
    *,
    retraction: str,
    sketch: str,
    sweep: int = 1,
    blocks: int = 1,
) -> LowRankManifold:
    """Return the LowRankUnitary of square matrices, the LowRankStiefel of others."""
    is_square = len(shape) >= 2 and shape[-2] == blocks * shape[-1]
    kind = LowRankUnitary if is_square else LowRankStiefel
    return kind(k, retraction=retraction, sketch=sketch, sweep=sweep, blocks=blocks)


def check_init(init: str, shape: Sequence[int], blocks: int = 1, *others: str) -> None:
    """Raise ValueError unless matrices of some shape can start so; ``others`` are names as well."""
    is_square = len(shape) < 2 or shape[-2] == blocks * shape[-1]
    known = (*others, *(INITS if is_square else RECTANGULAR))
    assert_known("init", init, known, "" if is_square else " for a rectangular matrix")


def initial(
    manifold: LowRankManifold,
    shape: Sequence[int],
    init: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> torch.Tensor:
    """Return a point of some shape to start from, by a name that :func:`check_init` has seen."""
    if init == "identity":
        return manifold.origin(*shape, dtype=dtype, device=device)
    if init == "haar":
        return manifold.random(*shape, dtype=dtype, device=device)
    *batch, rows, n = shape
    drawn = INITS[init](*batch, rows // n, n, n, dtype=dtype, device=device)
    return drawn.reshape(tuple(shape))


def start_at(p: torch.Tensor, init: str) -> None:
    """Set a parameter to a point drawn by ``init``, also one that was taken off its manifold.

    Processes with parts of it get those of what the first one draws.
    """
    manifold = low_rank_manifold_of(p)
    if manifold is None:
        manifold = manifold_for(p.shape, None, retraction="exponential", sketch="tangent")
    value = initial(manifold, p.shape, init, dtype=p.dtype, device=p.device)
    p.copy_(place_like(value, p) if is_dtensor(p) else value)


def assert_fits(name: str, owner: Any, x: torch.Tensor, manifold: LowRankManifold) -> None:
    """Raise ValueError if a parameter of a module cannot be on a manifold."""
    fits, reason = manifold.check_point(x, explain=True)
    if not fits:
        raise ValueError(f"`{name}` of {type(owner).__name__} does not fit: {without_x(reason)}")


def steps_of(p: Any) -> str:
    """Return what a module's description says of how its parameter is stepped."""
    manifold = getattr(p, "manifold", None)
    if isinstance(manifold, LowRankManifold):
        return f", {manifold.extra_repr(p)}"
    return "" if manifold is None else f", {manifold.extra_repr()}"
