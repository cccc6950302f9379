"""What backends are told: what a manifold says about steps, and a rule about directions.

The methods of a backend are those of :class:`.reference.Reference`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch

Buffers = dict[str, torch.Tensor]
Total = Callable[[torch.Tensor], torch.Tensor]


class StepSpec(NamedTuple):
    """What a manifold says about its steps."""

    k: int | None
    """Rank of the sketch; None for the whole generator."""
    sketch: str
    """Name in :data:`geoopt_projunn.sketches.SKETCHES`, or "coordinates"."""
    retraction: str
    """Name in :data:`geoopt_projunn.retractions.RETRACTIONS`."""
    sweep: int
    """Columns that are re-orthonormalized after a step."""
    scale: float = 1.0
    """Of generators: they are this times skewh(d xᴴ)."""
    normalize: str | None = None
    """Name in :data:`geoopt_projunn.normalization.NORMALIZATIONS`; None for a step as long as its
    direction."""


class Proposal(NamedTuple):
    """The direction of steepest ascent to follow, and the next values of the buffers.

    Nothing has changed yet: where the step is not finite the buffers stay as they are.
    """

    direction: torch.Tensor
    """(b, n, p)"""
    buffers: Buffers
    """The next values, by name."""


class NativeRule(NamedTuple):
    """A rule by name, for backends that have it in their own code."""

    name: str
    state: tuple[str, ...]
    """Its buffers, in the order in which backends expect them."""
    numbers: tuple[float, ...]
    """"momentum": momentum, dampening, whether Nesterov's. "adam": both betas, epsilon."""


class TangentMomentum(NamedTuple):
    r"""A momentum of generators: :math:`B \leftarrow \mu B + \operatorname{sketch}(g)`."""

    name: str
    """Of the buffer, (b, n, n), skew-Hermitian."""
    momentum: float
    dampening: float
    nesterov: bool


class Rule(Protocol):
    """How a gradient becomes a direction in the ambient space."""

    is_linear: bool
    """Whether the direction is a linear function of the gradient and the buffers: that of a mean of
    gradients is the mean of their directions, and it is not finite where a proposed buffer is not.
    """

    known_buffers: frozenset[str]
    """All names of state that any hyperparameters ask for."""

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state that this group's hyperparameters ask for."""

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        """Return that state for a fresh parameter of shape (*, n, p).

        Each tensor's shape begins with the batch dimensions of ``x``; two more follow.
        """

    def propose(
        self,
        grad: torch.Tensor,
        buffers: Buffers,
        taken: torch.Tensor,
        group: Mapping[str, Any],
        total: Total | None = None,
    ) -> Proposal:
        """Return what to do, without doing it: the formula, in torch's operations.

        Parameters
        ----------
        grad : torch.Tensor
            (b, n, p)
        buffers : dict
            the state of :meth:`first_buffers`, batch dimensions flattened to b
        taken : torch.Tensor
            (b,), int64, steps taken before this one
        group : mapping
            hyperparameters
        total : callable, optional
            Adds up numbers of each matrix, (b, 1, 1), over processes that hold parts of it.
        """

    def withdrawn(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the buffers that lose what a step has carried, and which share of it."""

    def unit(self, group: Mapping[str, Any], entries: int) -> float:
        """Return how many units of its directions a learning rate of one stands for."""

    def tangent_momentum(self, group: Mapping[str, Any]) -> TangentMomentum | None:
        """Return which buffer adds up the generators of sketches, None for none."""

    def native(self, group: Mapping[str, Any]) -> NativeRule | None:
        """Return what backends may know this rule by, None for one that only torch has."""
