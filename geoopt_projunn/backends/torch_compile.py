"""Steps as one compiled function, where launching operations is what costs."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.torch_version import TorchVersion

from ..warning import warn

# From here on, updates in place are compiled into copies of the whole matrix.
_COPIES_FROM = 512**2
# https://github.com/pytorch/pytorch/issues/159154: it gives buffers on a CPU less memory than what
# it writes into them.
_CORRUPTS_MEMORY = TorchVersion(torch.__version__) < "2.9"
# torch's own limit, 8, is for functions that were meant to be compiled once.
_MOST_KINDS = 64
_NOT_OF_THE_STEP = ("params", "param_names", "name", "lr", "initial_lr", "step", "stabilize")

Step = Callable[..., None]


def pays(x: torch.Tensor) -> bool:
    """Return whether compiling makes steps of x faster, and the compiler knows its dtype."""
    if x.shape[-2] * x.shape[-1] >= _COPIES_FROM or x.is_complex() or x.is_meta:
        return False
    if x.is_cpu and _CORRUPTS_MEMORY:
        _warn_of_corruption()
        return False
    return True


@functools.cache
def _warn_of_corruption() -> None:
    warn(
        "`compile=True` has no effect on a CPU, because torch.compile of torch "
        f"{torch.__version__} corrupts memory there; use torch 2.9 or later, or leave "
        "`compile` out.",
    )


@functools.cache
def compiled(step: Step) -> Step:
    """Compile a step, anew for each kind of arguments; the learning rate may change freely.

    Where it cannot be compiled, for want of a compiler or after too many kinds, a warning says so
    once and the step is taken as it is: nothing has run by then.
    """
    # Private names of torch, which only this option needs.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    # Older versions of torch have one limit for all functions.
    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit = {"recompile_limit": _MOST_KINDS} if has_limit else {}
    fast: Step = torch.compile(  # type: ignore[call-overload]
        step, fullgraph=True, dynamic=False, **limit
    )
    works = True

    @functools.wraps(step)
    def take(*arguments: Any, group: Mapping[str, Any]) -> None:
        nonlocal works
        if not works:
            return step(*arguments, group=group)
        constants = {name: group[name] for name in group.keys() - _NOT_OF_THE_STEP}
        # A number would be compiled in.
        lr = group["lr"]
        # A number on the host, whatever torch's default device is.
        if not isinstance(lr, torch.Tensor):
            lr = torch.tensor(lr, dtype=torch.float64, device="cpu")
        lr = lr.to(torch.float64).reshape(())
        try:
            fast(*arguments, group={**constants, "lr": lr})
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            works = False
            warn(
                "`compile=True` has no effect from here on, because torch.compile failed: "
                f"{str(error).strip().splitlines()[0]}",
            )
            step(*arguments, group=group)

    return take
