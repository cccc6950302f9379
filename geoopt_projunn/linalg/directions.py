"""Ambient directions, given or made of a gradient and of what an optimizer remembers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from . import moments, whole_steps
from .batch import Pieces, gather


@dataclass
class Direction(ABC):
    """The direction of steepest ascent to follow, of b matrices.

    What it is made of changes only where a step along it was taken. Only the whole step takes it
    from several tensors: what was gathered of them does not go back.
    """

    pieces: Pieces
    """Of the gradient."""

    @abstractmethod
    def made(self, counter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return it, (b, n, n), and where what made it is finite, (b,), bool, if need be.

        ``counter``, (b,), int64, counts the steps before this one.
        """

    @abstractmethod
    def advance_(self, counter: torch.Tensor, stepped: torch.Tensor) -> None:
        """Remember the step where it was taken, (b,), bool."""

    @abstractmethod
    def step_whole_(self, x: Pieces, *how: Any) -> None:
        """Take the whole step by the extension, as :data:`.whole_steps.step_` does."""


class Given(Direction):
    """The gradient itself."""

    def made(self, counter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gather it."""
        return gather(self.pieces), None

    def advance_(self, counter: torch.Tensor, stepped: torch.Tensor) -> None:
        """Remember nothing."""

    def step_whole_(self, x: Pieces, *how: Any) -> None:
        """Take the whole step by the operator of this direction."""
        whole_steps.step_(x, self.pieces, *how)


@dataclass
class Momentum(Direction):
    """What :data:`.moments.momentum_direction` makes, if :func:`.moments.serve` says so."""

    buffer: Pieces
    momentum: float
    dampening: float
    nesterov: bool

    def _numbers(self) -> tuple[float, float, bool]:
        return self.momentum, self.dampening, self.nesterov

    def made(self, counter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make it in one pass."""
        grad = gather(self.pieces)
        return moments.momentum_direction(grad, gather(self.buffer), counter, *self._numbers())

    def advance_(self, counter: torch.Tensor, stepped: torch.Tensor) -> None:
        """Advance in one pass."""
        grad = gather(self.pieces)
        moments.momentum_buffer_(grad, gather(self.buffer), counter, *self._numbers(), stepped)

    def step_whole_(self, x: Pieces, *how: Any) -> None:
        """Take the whole step by the operator of this direction."""
        whole_steps.momentum_step_(x, self.pieces, self.buffer, *self._numbers(), *how)


@dataclass
class Adam(Direction):
    """What :data:`.moments.adam_direction` makes, if :func:`.moments.serve` says so."""

    first: Pieces
    second: Pieces
    most: Pieces
    """Empty without AMSGrad."""
    beta1: float
    beta2: float
    eps: float

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        most = gather(self.most) if self.most else None
        return gather(self.first), gather(self.second), most

    def _numbers(self) -> tuple[float, float, float]:
        return self.beta1, self.beta2, self.eps

    def made(self, counter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make it in one pass."""
        grad = gather(self.pieces)
        return moments.adam_direction(grad, *self._moments(), counter, *self._numbers())

    def advance_(self, counter: torch.Tensor, stepped: torch.Tensor) -> None:
        """Advance in one pass."""
        grad = gather(self.pieces)
        moments.adam_moments_(grad, *self._moments(), counter, *self._numbers(), stepped)

    def step_whole_(self, x: Pieces, *how: Any) -> None:
        """Take the whole step by the operator of this direction."""
        kept = self.first, self.second, self.most
        whole_steps.adam_step_(x, self.pieces, *kept, *self._numbers(), *how)
