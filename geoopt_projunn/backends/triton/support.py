"""Where the kernels can run. Triton itself is imported when a step is taken, and not before."""

import functools
import importlib.util
import os
import warnings

import torch

OLDEST = (8, 0)
"""Compute capability of the oldest GPUs for which the kernels are compiled in the tests."""
_OLDEST_TO_OVERLAP = (9, 0)
TILE_BYTES = 512
"""Of the row of a tile, unless a matrix is narrower: what a warp reads at once."""
OLDEST_TRITON = (3, 5)
"""The first that multiplies tiles in float64; it comes with torch 2.9."""


def version() -> tuple[int, ...] | None:
    """Return major and minor version of Triton, which is imported for it; None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return tuple(int(number) for number in triton.__version__.split(".")[:2])


def lack_of_triton() -> str | None:
    """Return why the Triton at hand does not serve, None if it does."""
    at_hand = version()
    if at_hand is None:
        return "Triton is not installed"
    if at_hand < OLDEST_TRITON:
        have, need = (".".join(map(str, numbers)) for numbers in (at_hand, OLDEST_TRITON))
        return f"Triton is {have}, and the kernels need {need} or later, as torch 2.9 has"
    return None


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and lack_of_triton() is None
"""Whether kernels run in Python on a CPU, which is for tests; Triton reads it as it is imported."""


@functools.cache
def lack(device: torch.device) -> str | None:
    """Return why a GPU cannot run the kernels, None if it can."""
    of_triton = lack_of_triton()
    if of_triton is not None:
        return of_triton
    if torch.version.hip is not None:
        return "the kernels are for GPUs of NVIDIA"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        have, need = (".".join(map(str, version)) for version in (capability, OLDEST))
        return f"the compute capability of {device} is {have}, and the kernels need {need}"
    return None


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Return whether a GPU can schedule a kernel while the one before it runs."""
    is_gpu = device.type == "cuda" and not INTERPRETED
    return is_gpu and torch.cuda.get_device_capability(device) >= _OLDEST_TO_OVERLAP


@functools.cache
def warn_of_lack(device: torch.device) -> None:
    """Say once that steps on a GPU are slower than they could be."""
    reason = lack(device)
    if reason is not None:
        warnings.warn(
            f"Steps on {device} are taken in torch's operations, some hundred launches each, "
            f"because the Triton kernels cannot be used: {reason}.",
            stacklevel=2,
        )
