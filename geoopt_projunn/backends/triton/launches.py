"""Start compiled kernels through the driver of the GPU, many in one call.

What Triton does in Python at each launch takes the host as long as the launch itself.
"""

import ctypes
import functools
import itertools
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from triton.compiler import CompiledKernel

from ...warning import warn
from ..extensions import REMEDY, lack_of
from . import support

# Up to this version the arguments of a compiled kernel are known to be those that its signature
# names, without constants, and then addresses of memory that only others need.
_NEWEST_TRITON = (3, 8)
_OTHER_MEMORY = (0, 0)
_WARP = 32
_INTEGERS = {f"{sign}{size}" for sign in "iu" for size in (1, 8, 16, 32, 64)}
# What the driver says in a thread that has not used the GPU yet.
_NO_CONTEXT = 201


def _lack_of_version(version: tuple[int, ...]) -> str | None:
    """Return why Triton's launches cannot be joined, None if they are known."""
    if version <= _NEWEST_TRITON:
        return None
    have, known = (".".join(map(str, numbers)) for numbers in (version, _NEWEST_TRITON))
    return (
        f"Triton is {have}, and this package knows the launches of Triton up to {known}. Update "
        "the package."
    )


_LACK: str | None
"""Why no launches are joined, and what to do about it; None if they are."""
try:
    from . import _launches
except ImportError as error:
    _launches = None  # type: ignore[assignment]
    _LACK = (
        "the C++ functions that start all at once are missing: "
        f"{lack_of(f'{__package__}._launches', error)}. {REMEDY}"
    )
else:
    _LACK = _lack_of_version(support.version() or ())


class Place(NamedTuple):
    """An argument that differs from call to call: one of the values of a call, and an offset."""

    number: int
    offset: int


class Launch(NamedTuple):
    """A kernel, its programs, and what its parameters are; of these some may be places."""

    compiled: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]


class Launches(NamedTuple):
    """Launches that follow each other."""

    packed: bytes
    kernels: tuple[Any, ...]
    """From Triton 3.8 on, one that nobody has any more is unloaded."""

    def start(self, values: tuple[int, ...], device: torch.device) -> None:
        """Start all of them on a device, which has to be the current one.

        The last of the values is the stream.
        """
        error = _launches.start(self.packed, values)
        if error == _NO_CONTEXT:
            torch.zeros((), device=device)
            error = _launches.start(self.packed, values)
        if error:
            raise RuntimeError(
                f"The driver of {device} could not start a kernel (CUDA error {error}), so that a "
                "parameter or the result of a layer is incomplete. Start again from a checkpoint, "
                "in a new process; with CUDA_LAUNCH_BLOCKING=1 in its environment the operation "
                "that fails first raises the error."
            )


def can_join(compiled: Any) -> bool:
    """Return whether what Triton returned of a launch is a kernel that can be joined to others.

    Warns
    -----
    UserWarning
        Once if no launches are joined at all.
    """
    if not isinstance(compiled, CompiledKernel):
        return False
    if _LACK is not None:
        _warn_of_lack()
        return False
    metadata = compiled.metadata
    return (
        metadata.num_ctas == 1
        # Triton's sanitizers and profilers have arguments of their own.
        and not getattr(metadata, "instrumentation_mode", "")
        and not metadata.launch_cooperative_grid
        and metadata.global_scratch_size == metadata.profile_scratch_size == 0
        and all(_is_known(kind) for kind in compiled.src.signature.values())
    )


def _is_known(kind: object) -> bool:
    return isinstance(kind, str) and (
        kind == "constexpr" or kind.startswith("*") or kind in _INTEGERS
    )


def joined(launches: Iterable[Launch]) -> Launches:
    """Return launches as one, all of which :func:`can_join`."""
    # The driver refuses a grid of no programs; Triton does not ask it.
    own = [launch for launch in launches if all(launch.grid)]
    arguments = [_arguments(launch) for launch in own]
    firsts = itertools.accumulate(map(len, arguments), initial=0)
    packed = [
        number for launch, first in zip(own, firsts, strict=False) for number in _how(launch, first)
    ]
    given = list(itertools.chain.from_iterable(arguments))
    places = [(at, *arg) for at, arg in enumerate(given) if isinstance(arg, Place)]
    packed += [0 if isinstance(arg, Place) else int(arg) for arg in given]
    packed += itertools.chain.from_iterable(places)
    head = (driver(), len(own), len(given), len(places))
    return Launches(_bytes_of((*head, *packed)), tuple(launch.compiled for launch in own))


def _how(launch: Launch, first_argument: int) -> tuple[int, ...]:
    """Return what is launched on how many threads, as csrc/launches.cpp reads it."""
    metadata = launch.compiled.metadata
    grid = (*launch.grid, 1, 1)[:3]
    threads = _WARP * metadata.num_warps
    how = threads, metadata.shared, int(metadata.launch_pdl), first_argument
    return (launch.compiled.function, *grid, *how)


def _arguments(launch: Launch) -> list[Any]:
    kinds = launch.compiled.src.signature.values()
    given = [arg for arg, kind in zip(launch.args, kinds, strict=True) if kind != "constexpr"]
    return [*given, *_OTHER_MEMORY]


def _bytes_of(numbers: Sequence[int]) -> bytes:
    # Numbers may be negative, and handles have the highest bit set.
    return struct.pack(f"{len(numbers)}Q", *(number % 2**64 for number in numbers))


@functools.cache
def driver() -> int:
    """Return where in memory the driver starts kernels."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    found = ctypes.cast(ctypes.CDLL(name).cuLaunchKernelEx, ctypes.c_void_p).value
    assert found is not None
    return found


@functools.cache
def _warn_of_lack() -> None:
    warn(
        "Steps on a GPU are right but slow to start: Triton launches each of their kernels, "
        f"because {_LACK}",
    )
