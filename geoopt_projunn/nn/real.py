"""Modules whose parameters are real beside complex states."""

from typing import Any

import torch


class StaysReal(torch.nn.Module):
    """A module whose parameters ``.to(torch.complex64)`` of a model does not make complex."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(lambda t: _real(fn(t)), recurse)  # type: ignore[no-untyped-call]


def _real(t: torch.Tensor) -> torch.Tensor:
    return t.real.contiguous() if t.is_complex() else t
