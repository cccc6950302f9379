"""Start compiled kernels through the driver of the GPU, many in one call.

What Triton does in Python at each launch takes the host as long as the launch itself.
"""

import ctypes
import functools
import importlib.util
import itertools
import struct
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from triton.compiler import CompiledKernel

from . import support

_LACK: str | None = None
"""Why the C++ part is not there, None if it is."""
try:
    from . import _launches
except ImportError as error:
    _launches = None  # type: ignore[assignment]
    if importlib.util.find_spec(f"{__package__}._launches") is None:
        _LACK = "it was not built, for want of a C++ compiler at installation"
    else:
        _LACK = f"it could not be loaded ({error})"

# Up to this version the arguments of a compiled kernel are known to be those that its signature
# names, without constants, and then addresses of memory that only others need.
_KNOWN = (support.version() or ()) <= (3, 8)
_OTHER_MEMORY = (0, 0)
_WARP = 32
_INTEGERS = {f"{sign}{size}" for sign in "iu" for size in (1, 8, 16, 32, 64)}
# What the driver says in a thread that has not used the GPU yet.
_NO_CONTEXT = 201


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
                f"The driver of {device} could not start a kernel of a step (CUDA error {error}, "
                "as in `cudaError_t`); the values of the parameter are no longer sure."
            )


def can_join(compiled: Any) -> bool:
    """Return whether what Triton returned of a launch is a kernel that can be joined to others.

    Warns
    -----
    UserWarning
        Once if the C++ part of it is missing.
    """
    if not isinstance(compiled, CompiledKernel) or not _KNOWN:
        return False
    if _LACK is not None:
        _warn_of_lack()
        return False
    metadata = compiled.metadata
    return (
        metadata.num_ctas == 1
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
    packed += [0 if isinstance(arg, Place) else int(arg or 0) for arg in given]
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
    # Handles may have the highest bit set.
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
    warnings.warn(
        "Steps on a GPU are right but slow to start: Triton launches each of their kernels, "
        f"because the C++ part of the package that starts all at once is missing: {_LACK}.",
        stacklevel=2,
    )
