"""What an update rule has to say to the shared step loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..linalg.batch import Pieces
from ..linalg.directions import Direction

Buffers = dict[str, torch.Tensor]


@dataclass
class Proposal:
    """The direction of steepest ascent to follow, and the next values of the buffers.

    Nothing has changed yet: where the step is not finite the buffers stay as they are.
    """

    direction: torch.Tensor
    """(b, n, n)"""
    buffers: Buffers
    """The next values, by name."""

    def is_finite(self, taken: torch.Tensor) -> torch.Tensor:
        """Return for each matrix whether all its next values are finite, (b,), bool."""
        finite = torch.ones_like(taken, dtype=torch.bool)
        for buffer in self.buffers.values():
            finite = finite & _is_finite(buffer)
        return finite

    def commit_(self, buffers: Buffers, taken: torch.Tensor, active: torch.Tensor) -> None:
        """Write the next values into ``buffers`` where ``active``, (b,), bool."""
        for name, buffer in self.buffers.items():
            torch.where(active[:, None, None], buffer, buffers[name], out=buffers[name])


class Remembering(Proposal):
    """A proposal of a direction that remembers the step itself."""

    def __init__(self, direction: Direction, taken: torch.Tensor) -> None:
        made, self._finite = direction.made(taken)
        super().__init__(made, {})
        self._remembers = direction

    def is_finite(self, taken: torch.Tensor) -> torch.Tensor:
        """Return for each matrix whether what made its direction is finite, (b,), bool."""
        return super().is_finite(taken) if self._finite is None else self._finite

    def commit_(self, buffers: Buffers, taken: torch.Tensor, active: torch.Tensor) -> None:
        """Remember the step where ``active``, (b,), bool."""
        self._remembers.advance_(taken, active)


def _is_finite(buffer: torch.Tensor) -> torch.Tensor:
    # Two passes that create nothing of the buffer's size; the inf-norm is 20 times slower.
    real = torch.view_as_real(buffer).flatten(-2) if buffer.is_complex() else buffer
    return torch.isfinite(real.amax((-2, -1))) & torch.isfinite(real.amin((-2, -1)))


class UpdateRule(Protocol):
    """How a gradient becomes a direction in the ambient space."""

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state that this group's hyperparameters ask for."""

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        """Return that state for a fresh parameter of shape (*, n, n).

        Each tensor's shape begins with the batch dimensions of ``x``; two more follow.
        """

    def direction(
        self, grad: Pieces, buffers: Mapping[str, Pieces], group: Mapping[str, Any]
    ) -> Direction | None:
        """Return what the extension steps along, or None if it does not know how.

        Parameters
        ----------
        grad : sequence of torch.Tensor
            gradients of one shape, (*, n, n)
        buffers : dict
            the state of :meth:`first_buffers` of each
        group : mapping
            hyperparameters
        """

    def propose(
        self, grad: torch.Tensor, buffers: Buffers, taken: torch.Tensor, group: Mapping[str, Any]
    ) -> Proposal:
        """Return what to do, without doing it.

        Parameters
        ----------
        grad : torch.Tensor
            (b, n, n)
        buffers : dict
            the state of :meth:`first_buffers`, batch dimensions flattened to b
        taken : torch.Tensor
            (b,), int64, steps taken before this one
        group : mapping
            hyperparameters
        """

    def withdrawn(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the buffers that lose what a step has carried, and which share of it."""
