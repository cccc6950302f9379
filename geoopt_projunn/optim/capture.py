"""Steps in a CUDA graph: what a replay would do wrong is refused while it is captured."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..linalg.modes import is_capturing
from .kinds import Parts, manifold_of
from .messages import capitalized, described

States = Mapping[torch.Tensor, Mapping[str, Any]]


def check_has_begun(p: torch.Tensor, group: Mapping[str, Any]) -> None:
    """Raise RuntimeError if a parameter takes its first step while a graph is captured.

    A first step makes state, which every replay would make anew, and measures points, for which the
    host waits.
    """
    if is_capturing():
        raise RuntimeError(
            f"{capitalized(described(p, group))} must have taken a step before one is captured in "
            "a CUDA graph, and after a load; call `step()` a few times outside of the capture."
        )


def check_captured(
    groups: list[dict[str, Any]],
    parts: list[Parts],
    states: States,
    fresh: Iterable[torch.Tensor],
    needed: Callable[[dict[str, Any]], Iterable[str]],
) -> None:
    """Raise an error if a graph that is being captured could not be replayed.

    Parameters
    ----------
    groups, parts
        the groups of the optimizer, and their parameters
    states : mapping
        of the optimizer
    fresh : iterable
        low-rank parameters whose state this step would make
    needed : callable
        as in :class:`.nonfinite.AllOrNothing`

    Raises
    ------
    RuntimeError, ValueError
        for steps that wait for the GPU, take place on the host, or make state
    """
    if not is_capturing():
        return
    fresh = set(fresh)
    for group, part in zip(groups, parts, strict=True):
        stepped = [*part.low_rank_parameters(), *part.others()]
        if stepped and group["stabilize"] is not None:
            raise ValueError(
                "`stabilize` must be None while a step is captured in a CUDA graph, got "
                f"{group['stabilize']!r}: its steps are counted on the host; call "
                "`stabilize_group` between replays."
            )
        for p in stepped:
            if p.is_cpu:
                raise RuntimeError(
                    f"{capitalized(described(p, group))} must be on the GPU while a step is "
                    "captured in a CUDA graph, but is on the CPU, where a replay changes nothing."
                )
            if p in fresh:
                check_has_begun(p, group)
        for p in part.others():
            _check_other(p, group, states.get(p, {}), needed(group))


def _check_other(
    p: torch.Tensor, group: dict[str, Any], state: Mapping[str, Any], needed: Iterable[str]
) -> None:
    manifold = manifold_of(p)
    if manifold is not None:
        raise RuntimeError(
            f"{capitalized(described(p, group))} on {manifold} cannot be stepped in a CUDA graph: "
            "geoopt's optimizers count steps on the host, and some retractions wait for the GPU; "
            "step it by an optimizer of its own, outside of the graph."
        )
    needed = [*needed, *(["max_exp_avg_sq"] if group.get("amsgrad", False) else [])]
    if any(state.get(name) is None for name in needed):
        check_has_begun(p, group)
    if "betas" in group:
        step = state["step"]
        on_device = isinstance(step, torch.Tensor) and step.device == p.device
        if not group["capturable"] or not on_device:
            raise ValueError(
                f"`capturable` must be True from the first step on for {described(p, group)} to be "
                f"stepped in a CUDA graph, got {group['capturable']!r}"
                + ("" if on_device else ", and its steps are counted on the host")
                + "; make the optimizer with `capturable=True`."
            )
    elif isinstance(group["lr"], torch.Tensor) and not group["fused"]:
        raise ValueError(
            f"`fused` must be True for {described(p, group)} to be stepped in a CUDA graph with a "
            f"tensor for `lr`, which torch otherwise reads on the host, got {group['fused']!r}; "
            "make the optimizer with `fused=True`."
        )
