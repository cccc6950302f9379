"""In which order a recurrence takes its time steps, and where their rows lie.

Sequences lie in torch's packed layout: the rows of all sequences at the first time step, then at
the second, ... with ``batch_sizes`` rows each, not increasing. A batch of equal lengths is the
case of constant ``batch_sizes``.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise, repeat
from typing import NamedTuple, TypeVar

from torch import Tensor

Item = TypeVar("Item")


class Run(NamedTuple):
    """Time steps that follow each other and have the same number of rows."""

    shared: int
    """How many rows of its first step continue the step before."""
    rows: int
    """Of each of its steps."""
    steps: int


class Order(NamedTuple):
    """The time steps of a recurrence, or a chunk of them.

    They are taken run by run. A run is one step, or with ``join=True`` as many as there can be in
    it: what is done once for each run then does not grow with time.
    """

    batch_sizes: Sequence[int]
    reverse: bool
    """Whether to go from the last step to the first."""
    start: int = 0
    """Where the rows of a chunk begin among all."""
    rows_before: int = 0
    """Of the step that is taken just before a chunk; 0 if there is none."""

    def chunks(self, count: int) -> list["Order"]:
        """Take all steps apart into at most so many chunks, in the order in which they are taken.

        The last chunk may have fewer steps than the others.
        """
        sizes = self.as_taken(self.batch_sizes)
        most = -(-len(sizes) // count)
        parts = [sizes[first : first + most] for first in range(0, len(sizes), most)]
        ends = [*accumulate(map(sum, parts), initial=0)]
        starts = [ends[-1] - end for end in ends[1:]] if self.reverse else ends
        rows_before = [0, *(part[-1] for part in parts)]
        own = map(self.as_taken, parts)
        return [*map(Order, own, repeat(self.reverse), starts, rows_before)]

    def runs(self, *, join: bool = False) -> list[Run]:
        """Return the runs in the order in which they are taken."""
        sizes = self.as_taken(self.batch_sizes)
        rows, steps = zip(*_counted(sizes), strict=True) if join else (sizes, repeat(1))
        shared = map(min, [self.rows_before, *rows], rows)
        return [*map(Run, shared, rows, steps)]

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Return the rows of each step, in the order in which they are taken."""
        return self.as_taken(x.split_with_sizes(self.batch_sizes))

    def ends(self, x: Tensor, *, join: bool = False) -> Sequence[Sequence[Tensor]]:
        """Return, of each run, the rows of its first step and of its last."""
        if not join:
            parts = self.split(x)
            return [*zip(parts, parts, strict=True)]
        ends, start = [], 0
        for rows, steps in _counted(self.batch_sizes):
            stop = start + rows * steps
            ends.append(self.as_taken((x[start : start + rows], x[stop - rows : stop])))
            start = stop
        return self.as_taken(ends)

    def of(self, x: Tensor) -> Tensor:
        """Return the rows of a chunk, given all."""
        return rows_of(x, self.start, self.start + sum(self.batch_sizes))

    def previous(self, x: Tensor) -> Tensor:
        """Return the rows of the step that is taken before a chunk, given all."""
        stop = self.start + (sum(self.batch_sizes) + self.rows_before if self.reverse else 0)
        return rows_of(x, stop - self.rows_before, stop)

    def continued(self) -> Iterator[tuple[int, int, int]]:
        """Yield where rows of a chunk lie that continue others, where those lie, and how many.

        The first place is within the chunk, the second among all rows. Of two steps that follow
        each other, the earlier one in memory has as many rows as the other, or more.
        """
        near = [self.rows_before] if self.rows_before else []
        *earlier, last = [*self.batch_sizes, *near] if self.reverse else [*near, *self.batch_sizes]
        place = 0 if self.reverse else -self.rows_before
        for (rows, steps), (following, _) in pairwise([*_counted(earlier), (last, 1)]):
            at, other = (place, place + rows) if self.reverse else (place + rows, place)
            yield at, self.start + other, rows * (steps - 1) + following
            place += rows * steps

    def as_taken(self, x: Sequence[Item]) -> Sequence[Item]:
        """Return in the order in which steps are taken what is in that of memory, or back."""
        return x[::-1] if self.reverse else x


def _counted(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return each size and how many times it stands in a row."""
    return [(size, len([*same])) for size, same in groupby(sizes)]


def rows_of(x: Tensor, start: int, stop: int) -> Tensor:
    """Return x[start:stop]; a slice costs as much as a small operation."""
    return x if start == 0 and stop == x.shape[0] else x[start:stop]
