"""What is to be learnt: batches of sequences, a loss, and what else to measure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = dict[str, Any]
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A supervised problem over sequences that lie along the first dimension."""

    name: str  # also of its files
    title: str
    batch: Callable[[int, int], tuple[Tensor, Tensor]]  # of a seed and an iteration, from 1
    loss: Callable[[Tensor, Tensor], Tensor]
    # Further columns of the history, and a factor of the learning rates by finished iterations.
    measure: Callable[[torch.nn.Module], dict[str, float]] = field(default=lambda model: {})
    decay: Callable[[int], float] = field(default=lambda iteration: 1.0)

    def columns(self, iteration: int) -> dict[str, int]:
        """Return what else to note in a row that begins with an iteration."""
        return {}

    def completed(self, row: Row) -> Row:
        """Return a saved row with the columns that earlier versions had not."""
        return row


@dataclass(frozen=True, kw_only=True)
class MemoryTask(Task):
    """One whose batches are drawn anew, so that the training loss is that on unseen sequences."""

    trivial: float  # loss of the best predictor that remembers nothing
    threshold: float  # a loss that counts as solved
    length: int
    length_at: Callable[[int], int] | None = None  # of shorter ones before, by iteration

    def columns(self, iteration: int) -> dict[str, int]:
        return {"length": self.length_at(iteration) if self.length_at else self.length}

    def completed(self, row: Row) -> Row:
        return {**row, "length": row.get("length", self.length)}

    def solved_at(self, history: list[Row]) -> int | None:
        """Return the first iteration with a loss below the threshold at the full length."""
        of_length = (row for row in history if row["length"] == self.length)
        return next((row["iteration"] for row in of_length if row["loss"] < self.threshold), None)


def in_epochs(x: Tensor, y: Tensor, size: int) -> tuple[Callable[[int, int], Split], int]:
    """Return a task's batches of data, in a new order in every epoch, and how many an epoch has."""
    count = math.ceil(len(y) / size)

    def batch(seed: int, iteration: int) -> Split:
        epoch, place = divmod(iteration - 1, count)
        order = np.random.default_rng([seed, epoch]).permutation(len(y))
        chosen = order[place * size : (place + 1) * size]
        return x[:, chosen], y[chosen]

    return batch, count


def cosine(done: int, total: int) -> float:
    """Return a factor that falls from 1 to 0 along half a period."""
    return 0.5 + 0.5 * math.cos(math.pi * done / total)
