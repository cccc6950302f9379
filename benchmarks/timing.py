"""Seconds of a call, on a CPU or a GPU."""

import functools
import time
from collections.abc import Callable

import torch


def timed(function: Callable[[], object], calls: int = 1) -> float:
    """Return the mean seconds of a few calls in a row.

    Of one thread the time on its processor: the clock's on an idle machine, and no other on a busy
    one.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    _finish()
    start = clock()
    for _ in range(calls):
        function()
    _finish()
    return (clock() - start) / calls


def empty_caches() -> None:
    """Fill the caches of the processor, and of the GPU, with something else."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        _large(device).add_(1)


@functools.cache
def _large(device: str) -> torch.Tensor:
    # Several times as large as caches are.
    return torch.zeros(2**28, dtype=torch.uint8, device=device)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
