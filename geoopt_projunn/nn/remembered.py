"""What is made of parameters, kept until they change."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..linalg.modes import is_capturing
from .transforms import needs_torch_operations

__all__ = ["Remembered", "are_comparable"]


class Remembered:
    """What a function makes of tensors, made again as soon as one of them holds other values.

    The values are compared, with copies. Counters of versions would not see what is written by way
    of ``.data``, as averages of weights often are, or by another process.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[torch.Tensor, ...], torch.Tensor] | None = None

    def __call__(
        self, make: Callable[[], torch.Tensor], tensors: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return ``make()``, detached, the last one if the tensors are as they were then."""
        last = self._last
        if last is None or not all(itertools.starmap(_same, zip(last[0], tensors, strict=True))):
            # What inference mode makes could not take part in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                last = tuple(t.detach().clone() for t in tensors), make()
            self._last = last
        return last[1]

    def __reduce__(self) -> Any:
        # Copies and files of a module are as small without it.
        return type(self), ()


def _same(before: torch.Tensor, now: torch.Tensor) -> bool:
    alike = (before.dtype, before.device) == (now.dtype, now.device)
    return alike and torch.equal(before, now)


def are_comparable(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether values can be looked at: not in a program, nor in a transform."""
    if torch.compiler.is_compiling() or needs_torch_operations(*tensors):
        return False
    return not tensors[0].is_meta and not (tensors[0].is_cuda and is_capturing())
