"""Sizes of a step, and the memory that it works in."""

from dataclasses import dataclass

import torch

from ..spec import StepSpec
from .kernels.arrivals import TICKETS
from .kernels.directions import NUMBERS
from .kernels.gram import MOST_PROGRAMS
from .kernels.vectors import MOST_PROGRAMS as MOST_THAT_MIX
from .launching import Share, Tiles, carve, padded

# Positions that a program works on at once: of one vector, of several by the bytes of an entry,
# and of the rows of a basis, in float64, by the number of rows.
_OF_A_VECTOR = 256
_OF_VECTORS = {4: 32, 8: 16}
_SMALL = 8
_OF_BASIS = {1: 64, 2: 64, 4: 64, 16: 32, 32: 16, 64: 16}

Memory = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of a batch (b, n, p) of real or complex matrices."""

    b: int
    n: int
    p: int
    parts: int
    """2 for complex matrices."""
    k: int
    tiles: Tiles
    width: int
    """Of rows in memory, parts p."""
    count: int
    """Real rows of a sketch, parts k."""
    sweep: int
    """Real rows of the columns that are swept, parts times their number."""

    mixing: Share
    """Of the positions of test vectors."""
    basis: Share
    """Of those of the sketch's basis."""
    core: Share
    """Of those of the step's basis."""

    @classmethod
    def of(cls, x: torch.Tensor, spec: StepSpec) -> "Sizes":
        """Return those of a step."""
        assert spec.k is not None
        b, n, p = x.shape
        parts = 2 if x.is_complex() else 1
        width, count = parts * p, parts * spec.k
        is_tangent = spec.sketch == "tangent"
        of_rows = is_tangent and spec.k == 1
        itemsize = x.element_size() // parts
        block = _OF_A_VECTOR if of_rows else _OF_VECTORS[itemsize]
        tiles = Tiles.of(n, width, itemsize, has_room=count == 1 and itemsize == 4)
        # One program reads the r x r results of all programs: take fewer programs where r is large.
        most = MOST_PROGRAMS.value if count <= _SMALL else MOST_PROGRAMS.value // 2
        most, most_that_mix = (1, 1) if tiles.is_small else (most, MOST_THAT_MIX.value)
        return cls(
            b,
            n,
            p,
            parts,
            spec.k,
            tiles,
            width,
            count,
            parts * min(spec.sweep, p),
            Share.of(width if of_rows else n, block, most_that_mix),
            Share.of(n if is_tangent else p, _OF_BASIS[padded(count)], most),
            Share.of(n, _OF_BASIS[padded(2 * count)], most),
        )

    def memory(self, dtype: torch.dtype, device: torch.device) -> Memory:
        """Return the rows and their products, in the precision of the matrices.

        Each matrix has a part of its own in all memory, from the first kernel to the last: where
        one program takes the whole step of a matrix, it may be several kernels ahead of others.
        """
        of_rows, of_columns = self.count * self.n, self.count * self.width
        longest = max(of_rows, of_columns)
        sizes = {
            "mixed": longest,
            "vectors": longest,
            "test": longest,
            "narrow": longest,
            "basis": 2 * of_rows,
            "sums": self.tiles.splits * of_columns,
            "turned_sums": 2 * self.tiles.splits * of_columns,
            "along": self.tiles.splits * of_columns,
            "back": self.tiles.blocks * of_rows,
            "last": self.tiles.blocks * of_rows,
            "own": self.sweep * self.n,
            "own_sums": self.tiles.splits * self.sweep * self.width,
            "errors": self.sweep * self.width,
            "error_sums": self.tiles.blocks * self.sweep * self.n,
        }
        return carve(sizes, self.b, dtype, device)

    def wide_memory(self, device: torch.device) -> Memory:
        """Return the numbers of each matrix, bases and rotations, in float64."""
        one, both = padded(self.count), padded(2 * self.count)
        sizes = {
            "numbers": int(NUMBERS.value),
            "sums": self.mixing.programs * self.k * 2,
            "squares": self.tiles.blocks * self.tiles.splits,
            "q": self.count * self.n,
            "sketched": self.count * max(self.n, self.width),
            "gram_of_sketched": self.basis.programs * one**2,
            "largest_of_sketched": self.basis.programs * one,
            "seen": self.basis.programs,
            "by_of_sketched": one**2,
            "again": one**2,
            "rows": 2 * self.count * self.n,
            "gram": self.core.programs * both**2,
            "products": self.core.programs * both**2,
            "largest": self.core.programs * both,
            "by": both**2,
            "delta": (2 * self.count) ** 2,
            "norms": self.tiles.blocks,
        }
        return carve(sizes, self.b, torch.float64, device)

    def flags(self, device: torch.device) -> Memory:
        """Return what says where something is not finite, and who has arrived."""
        sizes = {
            "finite": 1,
            "tickets": int(TICKETS.value),
            "bad": self.tiles.splits * self.tiles.blocks,
        }
        return carve(sizes, self.b, torch.int32, device)
