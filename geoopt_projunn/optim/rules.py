"""What an update rule has to say to the shared step loop."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

Buffers = dict[str, torch.Tensor]


class UpdateRule(Protocol):
    """How a gradient becomes a direction in the ambient space."""

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state that this group's hyperparameters ask for."""

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        """Return that state for a fresh parameter of shape (*, n, n).

        Each tensor's shape begins with the batch dimensions of ``x``; two more follow.
        """

    def propose(
        self, grad: torch.Tensor, buffers: Buffers, taken: torch.Tensor, group: Mapping[str, Any]
    ) -> tuple[torch.Tensor, Buffers]:
        """Return the direction of steepest ascent to follow, and the buffers' next values.

        Nothing is changed in place: the step loop drops the proposal where it is not finite.

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
