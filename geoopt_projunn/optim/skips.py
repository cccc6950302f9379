"""Count the steps that were skipped, from the state of an optimizer; the host waits for it."""

from collections.abc import Mapping
from typing import Any

import torch

from ..backends.distributed import whole_of
from .kinds import Groups
from .nonfinite import COUNTER


def total_skipped(groups: Groups, states: Mapping[torch.Tensor, Any]) -> int:
    """Add up the steps that matrices on LowRankUnitary have skipped.

    If there is none, return how many steps the other parameters have skipped.
    """
    all_states = [states.get(p) for group in groups for p in group["params"]]
    of_matrices = [_skipped(state) for state in all_states if state and "skipped" in state]
    return sum(of_matrices) if of_matrices else max(map(_skipped, all_states), default=0)


def skipped_by_parameter(
    groups: Groups, states: Mapping[torch.Tensor, Any]
) -> dict[str | int, int]:
    """Return them by name, or by number where parameters have no names of their own."""
    names = [name for group in groups for name in group.get("param_names", ())]
    params = [p for group in groups for p in group["params"]]
    are_keys = len(names) == len(params) == len(set(names))
    keys = names if are_keys else range(len(params))
    return {key: _skipped(states.get(p)) for key, p in zip(keys, params, strict=True)}


def _skipped(state: Any) -> int:
    if not isinstance(state, dict):
        return 0
    count = state.get("skipped", state.get(COUNTER))
    return int(whole_of(count).sum()) if isinstance(count, torch.Tensor) else 0
