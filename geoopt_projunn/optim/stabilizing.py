"""Project the parameters of a group now and then, as geoopt's optimizers do with `stabilize`."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from .kinds import Groups, check_is_point, is_low_rank, manifold_of
from .messages import capitalized, described
from .nonfinite import States
from .others import Others
from .state import relative_error


def is_due(group: Mapping[str, Any]) -> bool:
    """Return whether the next step of a group ends with a projection."""
    every = group["stabilize"]
    return every is not None and (group.get("step", 0) + 1) % every == 0


def check_can_be_projected(p: torch.Tensor, group: Mapping[str, Any]) -> None:
    """Raise an error for a point that :meth:`LowRankUnitary.projx` would refuse; this waits."""
    manifold = manifold_of(p)
    if not is_low_rank(manifold) or p.is_meta or p.numel() == 0:
        return
    check_is_point(p, manifold, group)
    if not bool(relative_error(manifold.points(p)).isfinite().all()):
        raise ValueError(
            f"{capitalized(described(p, group))} cannot be projected, as `stabilize` asks: it "
            "must be finite, but has infinite or NaN entries, or entries whose squares "
            "overflow; start again from `manifold.random` or a checkpoint."
        )


def check_all(checks: Iterable[Callable[[], None]]) -> None:
    """Make all checks, and then raise the first error.

    One that stopped at an error would leave processes without it waiting in the next check.
    """
    first: Exception | None = None
    for check in checks:
        try:
            check()
        except (TypeError, ValueError) as error:
            first = first or error
    if first is not None:
        raise first


@torch.no_grad()
def project_(group: dict[str, Any], states: States, others: Others) -> None:
    """Project the points of a group, which have been checked, with geoopt's buffers."""
    theirs = []
    for p in group["params"]:
        manifold = manifold_of(p)
        if is_low_rank(manifold):
            p.copy_(manifold.projx(p))
        elif manifold is not None:
            theirs.append(p)
    others.stabilize(states, group, theirs)


def stabilize_(groups: Groups, states: States, others: Others) -> None:
    """Project the points of some groups, or of none: an error comes before anything moves."""
    check_all(partial(check_can_be_projected, p, g) for g in groups for p in g["params"])
    for group in groups:
        project_(group, states, others)
