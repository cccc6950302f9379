"""Where the kernels can run. Triton itself is imported when a step is taken, and not before."""

import functools
import importlib.util
import os
import pkgutil

import torch

from ...warning import warn

OLDEST = (8, 0)
"""Compute capability of the oldest GPUs for which the kernels are compiled in the tests."""
# Kernels overlap on the generation of GPUs on which that was tried, and with drivers from that of
# CUDA 12.3 on, since which CUDA graphs record it.
_OVERLAPPING_GENERATION = 9
_OLDEST_DRIVER_TO_OVERLAP = 12_030
ROOM_FOR_ALL = 160 * 1024
"""Bytes that the threads of a program share with which all kernels run; with 99 KiB, which GPUs of
compute capability 8.6, 8.9 and 12 have, those of half as many rows do."""
_MOST_ROWS = 32
TILE_BYTES = 512
"""Of the row of a tile, unless a matrix is narrower: what a warp reads at once."""
_USED = ("triton:knobs.runtime.launch_enter_hook", "triton.compiler:max_shared_mem")
"""Names outside of triton.language that this package uses; a new Triton may drop them."""
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
    for name in _USED:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return f"this Triton has no `{name}`; a newer version of this package may know it"
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
def largest_sketch(device: torch.device) -> int:
    """Return for how many real rows of a sketch a GPU has room: k, or 2k of complex matrices."""
    room = _shared_bytes(device) if device.type == "cuda" and not INTERPRETED else ROOM_FOR_ALL
    return _MOST_ROWS if room >= ROOM_FOR_ALL else _MOST_ROWS // 2


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Return how much memory the threads of a program may share."""
    from triton.compiler import max_shared_mem

    found: int = max_shared_mem(device.index)
    return found


def overlaps(device: torch.device, programs: int) -> bool:
    """Return whether to schedule kernels of up to so many programs while the ones before them run.

    On an H200 steps at n = 256 and 512 take 5 microseconds less, of 55 to 200. From n = 1024 on,
    where two such kernels have more programs than there are multiprocessors, they would take up to
    a third longer.
    """
    return 2 * programs <= _room_to_overlap(device)


@functools.cache
def _room_to_overlap(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has, 0 if its kernels cannot overlap."""
    if device.type != "cuda" or INTERPRETED:
        return 0
    found = torch.cuda.get_device_properties(device)
    driver: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    can = found.major == _OVERLAPPING_GENERATION and driver >= _OLDEST_DRIVER_TO_OVERLAP
    return found.multi_processor_count if can else 0


@functools.cache
def warn_of_lack(device: torch.device) -> None:
    """Say once that steps on a GPU are slower than they could be."""
    reason = lack(device)
    if reason is not None:
        warn(
            f"Steps on {device} are taken in torch's operations, some hundred launches each, "
            f"because the Triton kernels cannot be used: {reason}.",
        )
