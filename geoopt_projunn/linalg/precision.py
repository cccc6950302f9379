"""The precisions a step works in."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

WIDE = {
    torch.float32: torch.float64,
    torch.float64: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex128: torch.complex128,
}
"""The supported dtypes, and the one in which cores and bases are computed for each."""

_AUTOCAST_DEVICES = ("cpu", "cuda", "xpu")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function with autocast off: half precision cannot hold orthogonality."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return wrapped(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapped
