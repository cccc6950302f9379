"""Steps of small matrices as one compiled function, where launching operations is what costs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..manifold import LowRankUnitary

# From here on a step is made of passes over memory, and the compiler makes those no faster: it
# copies what is changed in place.
_PAYS_BELOW = 512
# Each kind of parameter and set of hyperparameters is compiled by itself.
_MOST_KINDS = 1024
_NOT_OF_THE_STEP = ("params", "param_names", "name", "lr", "initial_lr", "step", "stabilize")

Step = Callable[..., None]


def pays(x: torch.Tensor) -> bool:
    """Return whether compiling makes steps of x faster, and the compiler knows its dtype."""
    return x.shape[-1] < _PAYS_BELOW and not x.is_complex() and not x.is_meta


@functools.cache
def compiled(step: Step) -> Step:
    """Compile a step, anew for each kind of arguments; the learning rate may change freely."""
    fast: Step = torch.compile(  # type: ignore[call-overload]
        step, fullgraph=True, dynamic=False, recompile_limit=_MOST_KINDS
    )

    @functools.wraps(step)
    def take(manifold: LowRankUnitary, *rest: Any, group: Mapping[str, Any]) -> None:
        constants = {name: group[name] for name in group.keys() - _NOT_OF_THE_STEP}
        # A number would be compiled in.
        lr = torch.as_tensor(group["lr"], dtype=torch.float64)
        fast(_one_for_all(manifold), *rest, group={**constants, "lr": lr})

    return take


@functools.cache
def _one_for_all(manifold: LowRankUnitary) -> LowRankUnitary:
    """Return the first manifold equal to this one: another would be compiled anew."""
    return manifold
