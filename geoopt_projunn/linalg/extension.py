"""The compiled kernels, and when they serve.

The extension is built with the package if there is a C++ compiler, for CPUs. Without it, and for
all that it does not serve, everything is done by torch's own operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

try:
    from . import _kernels
except ImportError:
    _kernels = None  # type: ignore[assignment]

kernels = _kernels
BUILT = kernels is not None
USES_THREADS = BUILT and kernels.USES_THREADS
KINDS = {torch.float32: 0, torch.complex64: 1, torch.float64: 2, torch.complex128: 3}
"""What the kernels call a dtype. Bit 0: complex; bit 1: double precision."""

_enabled = BUILT


def serves(x: torch.Tensor) -> bool:
    """Return whether the kernels take tensors like ``x``, if they lie in memory as they must."""
    compiling = torch.compiler.is_compiling()
    return (
        _enabled
        and x.device.type == "cpu"
        and x.dtype in KINDS
        and not torch.is_grad_enabled()
        and (USES_THREADS or (not compiling and torch.get_num_threads() == 1))
        # Of what torch.func transforms, the derivative and the batch would be lost.
        and (compiling or torch._C._functorch.peek_interpreter_stack() is None)
        # So would the derivative of forward mode.
        and (compiling or torch.autograd.forward_ad._current_level < 0)
        and (compiling or not x.is_neg())
    )


def is_plain(x: torch.Tensor) -> bool:
    """Return whether the entries of a tensor lie in memory in their order, as they are."""
    return x.is_contiguous() and not (x.is_complex() and x.is_conj())


class Refused(ValueError):
    """Tensors that the kernels cannot take; nothing has changed."""


def check(tensor: torch.Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse what the kernels, which do not look, would misread.

    Raises
    ------
    Refused
        If the tensor is not plain, or of another shape or dtype.
    """
    if tensor.shape != shape or tensor.dtype != dtype or not is_plain(tensor):
        raise Refused(
            f"`{name}` must be contiguous, of shape {tuple(shape)} and {dtype}, got shape "
            f"{tuple(tensor.shape)}, strides {tensor.stride()} and {tensor.dtype}; use "
            "`LowRankUnitary` and the optimizers, which take all."
        )


@contextmanager
def disabled() -> Iterator[None]:
    """Use torch's own operations, for comparison; in all threads."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
