"""The compiled kernels, and what they take.

They are built with the package if there is a C++ compiler.
"""

import functools
import importlib.util
import warnings
from collections.abc import Iterable

import torch

from ..modes import refusal_of_modes

LACK: str | None = None
"""Why there are no kernels, None if there are."""
try:
    from . import _kernels
except ImportError as error:
    _kernels = None  # type: ignore[assignment]
    if importlib.util.find_spec(f"{__package__}._kernels") is None:
        LACK = "they were not built, for want of a C++ compiler at installation"
    else:
        LACK = f"they could not be loaded ({error})"

kernels = _kernels
DTYPES = torch.float32, torch.complex64, torch.float64, torch.complex128, torch.int64
"""Of points, and of counters, in their order. Bit 0: complex; bit 1: double precision."""
KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES[:4])}
"""What the kernels call a dtype of points."""
SKETCHES = ("tangent", "lsi", "column")
RETRACTIONS = ("exponential", "cayley", "polar")
"""Those that the kernels know, in their order."""
NORMALIZATIONS = ("angle", "spectral", None)
"""Those that the kernels know, in their order."""
RULES = {"gradient": ((0,), 0), "momentum": ((1,), 3), "adam": ((2, 3), 3)}
"""The rules that they know: how many buffers each may keep, and how many numbers it takes."""


class Refused(ValueError):
    """Tensors that the kernels cannot take; nothing has changed."""


def refusal(x: torch.Tensor) -> str | None:
    """Return why the kernels cannot serve a tensor, however it lies in memory, or None."""
    if LACK is not None:
        return f"the C++ kernels are missing: {LACK}"
    if not x.is_cpu:
        return f"the tensors are on {x.device}"
    if x.dtype not in KINDS:
        return f"the kernels do not know {x.dtype}"
    if reason := refusal_of_modes():
        return reason
    if torch.compiler.is_compiling():
        return None if kernels.USES_THREADS else "the kernels were built without OpenMP"
    if not kernels.USES_THREADS and torch.get_num_threads() > 1:
        return "the kernels were built without OpenMP, and torch has more than one thread"
    return "the tensors are negated lazily" if x.is_neg() else None


@functools.cache
def warn_of_lack() -> None:
    """Say once that steps on a CPU are slower than they could be."""
    if LACK is not None:
        warnings.warn(
            "Steps on the CPU are right but slow, up to six times as long for small matrices, for "
            f"the C++ kernels are missing: {LACK}. Install g++ or clang++, and then this package "
            "again, by `pip install --no-cache-dir --force-reinstall --no-deps .` in a clone.",
            stacklevel=2,
        )


def is_plain(x: torch.Tensor) -> bool:
    """Return whether the entries of a tensor lie in memory in their order, as they are."""
    return x.is_contiguous() and not (x.is_complex() and x.is_conj())


def is_stored(x: torch.Tensor) -> bool:
    """Return whether matrices are stored by rows or by columns."""
    return is_plain(x) or is_plain(x.mT)


def is_by_columns(x: torch.Tensor) -> bool:
    """Return whether matrices are stored by columns, and not by rows."""
    return not is_plain(x) and is_plain(x.mT)


def check(tensor: torch.Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse what the kernels, which do not look, would misread."""
    if tensor.shape != shape or tensor.dtype != dtype or not is_plain(tensor):
        raise Refused(
            f"`{name}` must be contiguous, of shape {tuple(shape)} and {dtype}, got shape "
            f"{tuple(tensor.shape)}, strides {tensor.stride()} and {tensor.dtype}; use "
            "`LowRankUnitary` and the optimizers, which take all."
        )


def check_choice(name: str, value: str | None, known: Iterable[str | None]) -> int:
    """Return the number of one of the names that the kernels know."""
    names = list(known)
    if value not in names:
        raise Refused(f"`{name}` must be one of {names}, got {value!r}.")
    return names.index(value)


def check_numbers(n: int, p: int, k: int, sweep: int = 0) -> None:
    """Refuse wide matrices, and what a step of n x p matrices cannot have: rank, columns."""
    if p > n:
        raise Refused(f"`x` must have as many rows as columns or more, got {n} x {p}.")
    if not 1 <= k <= min(p, n // 2):
        raise Refused(f"`k` must be between 1 and min(p, n // 2) = {min(p, n // 2)}, got {k}.")
    if not 0 <= sweep <= p:
        raise Refused(f"`sweep` must be between 0 and p = {p}, got {sweep}.")
