"""Sizes of a step, and the memory that it works in."""

from dataclasses import dataclass

import torch

from ..spec import StepSpec
from .kernels.directions import NUMBERS
from .launching import Tiles, carve

PROGRAMS = 64
"""Of partial sums of squares; one program adds them up."""

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

    @classmethod
    def of(cls, x: torch.Tensor, spec: StepSpec) -> "Sizes":
        """Return those of a step."""
        assert spec.k is not None
        b, n, p = x.shape
        parts = 2 if x.is_complex() else 1
        tiles = Tiles.of(n, parts * p, x.element_size() // parts)
        swept = parts * min(spec.sweep, p)
        return cls(b, n, p, parts, spec.k, tiles, parts * p, parts * spec.k, swept)

    def memory(self, dtype: torch.dtype, device: torch.device) -> Memory:
        """Return the rows and their products, in the precision of the matrices."""
        of_rows, of_columns = self.count * self.n, self.count * self.width
        longest = max(of_rows, of_columns)
        sizes = {
            "raw": longest,
            "test": longest,
            "mixed": longest,
            "narrow": longest,
            "basis": 2 * of_rows,
            "sums": 2 * self.tiles.splits * of_columns,
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
        longest = self.count * max(self.n, self.width)
        sizes = {
            "numbers": int(NUMBERS.value),
            "squares": PROGRAMS,
            "q": self.count * self.n,
            "rows": 2 * longest,
            "firsts": 2 * longest,
            "delta": (2 * self.count) ** 2,
            "norms": self.tiles.blocks,
        }
        return carve(sizes, self.b, torch.float64, device)

    def flags(self, device: torch.device) -> Memory:
        """Return what says where something is not finite."""
        sizes = {"finite": 1, "bad": self.tiles.splits * self.tiles.blocks}
        return carve(sizes, self.b, torch.int32, device)


def as_real(x: torch.Tensor) -> torch.Tensor:
    """Return the real matrices (b, n, 2p) that complex ones (b, n, p) are in memory."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x
