"""Project the parameters of a group now and then, as geoopt's optimizers do with `stabilize`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .kinds import Groups, is_low_rank, manifold_of
from .messages import capitalized, described
from .nonfinite import States
from .others import Others
from .state import relative_error


def is_due(group: Mapping[str, Any]) -> bool:
    """Return whether the next step of a group ends with a projection."""
    every = group["stabilize"]
    return every is not None and (group.get("step", 0) + 1) % every == 0


def check_can_be_projected(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise an error for a point that :meth:`LowRankUnitary.projx` would refuse; this waits."""
    pairs = [(p, group) for group in groups for p in group["params"]]
    for p, group in pairs:
        manifold = manifold_of(p)
        if not is_low_rank(manifold) or p.is_meta or p.numel() == 0:
            continue
        manifold.assert_check_point(p)
        if not bool(relative_error(manifold.points(p)).isfinite().all()):
            raise ValueError(
                f"{capitalized(described(p, group))} cannot be projected, as `stabilize` asks: it "
                "must be finite, but has infinite or NaN entries, or entries whose squares "
                "overflow; start again from `manifold.random` or a checkpoint."
            )


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
    check_can_be_projected(groups)
    for group in groups:
        project_(group, states, others)
