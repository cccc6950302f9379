"""The compiled kernels, and what they take.

They are built with the package if there is a C++ compiler.
"""

import functools

import torch

from ...warning import warn
from ..extensions import REMEDY, lack_of
from ..modes import refusal_of_modes

LACK: str | None = None
"""Why there are no kernels, None if there are."""
try:
    from . import _kernels
except ImportError as error:
    _kernels = None  # type: ignore[assignment]
    LACK = lack_of(f"{__package__}._kernels", error)

kernels = _kernels
KINDS = {torch.float32: 0, torch.complex64: 1, torch.float64: 2, torch.complex128: 3}
"""What the kernels call a dtype of points. Bit 0: complex; bit 1: double precision."""
DTYPES = (*KINDS, torch.int64, torch.bool)
"""All dtypes that they know, in their order."""
SKETCHES = ("tangent", "lsi", "column")
RETRACTIONS = ("exponential", "cayley", "polar")
"""Those that the kernels know, in their order."""
NORMALIZATIONS = ("angle", "spectral", None)
"""Those that the kernels know, in their order."""
RULES = ("gradient", "momentum", "adam")
"""Those that the kernels know, in their order."""
Refused: type[ValueError] = ValueError if LACK else _kernels.Refused
"""What they raise for tensors that they cannot take, when nothing has changed."""


def lack() -> str | None:
    """Return that there are no kernels, and why; None if they were built."""
    return None if LACK is None else f"the C++ kernels are missing: {LACK}"


def refusal(x: torch.Tensor) -> str | None:
    """Return why the kernels cannot serve a tensor, however it lies in memory, or None."""
    if reason := lack():
        return reason
    if not x.is_cpu:
        return f"the tensors are on {x.device}"
    if x.dtype not in KINDS:
        return f"the kernels do not support {x.dtype}"
    if reason := refusal_of_modes():
        return reason
    if torch.compiler.is_compiling():
        return None if kernels.USES_THREADS else "the kernels were built without OpenMP"
    if not kernels.USES_THREADS and torch.get_num_threads() > 1:
        return "the kernels were built without OpenMP, and torch has more than one thread"
    return "the tensors are negated lazily, see `torch.Tensor.resolve_neg`" if x.is_neg() else None


@functools.cache
def warn_of_lack() -> None:
    """Say once that steps on a CPU are slower than they could be."""
    if reason := lack():
        warn(
            "Steps on the CPU are right but slow, up to nine times as long for small matrices, "
            f"because {reason}. {REMEDY}",
        )


def is_by_rows(x: torch.Tensor) -> bool:
    """Return whether the entries of a tensor lie in memory in their order, as they are."""
    return x.is_contiguous() and not (x.is_complex() and x.is_conj())


def is_stored(x: torch.Tensor) -> bool:
    """Return whether matrices are stored by rows or by columns."""
    return is_by_rows(x) or is_by_rows(x.mT)


def is_by_columns(x: torch.Tensor) -> bool:
    """Return whether matrices are stored by columns, and not by rows."""
    return not is_by_rows(x) and is_by_rows(x.mT)


def check_choice(name: str, value: str | None, known: tuple[str | None, ...]) -> int:
    """Return the number of one of the names that the kernels know."""
    if value not in known:
        choices = ", ".join(map(repr, known))
        raise Refused(f"`{name}` must be one of {choices}, got {value!r}.")
    return known.index(value)
