"""Launch kernels, and say what a GPU kernel is told about sizes."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

# A tile's row is as long as a warp reads at once.
_TILE_BYTES = 512
# Programs that keep a large GPU busy, and the most partial sums that are worth that.
_PROGRAMS = 512
_MOST_SPLITS = 16
_FEWEST_ROWS = 32
# Up to here products are sums of products of entries, above of tl.dot.
_MOST_BY_ENTRY = 4
_LEAST_FOR_DOT = 16
_ALIGNED = 32


def launch(kernel: Any, grid: Sequence[int], *args: Any, **options: Any) -> None:
    """Run a kernel on a grid of programs."""
    kernel[tuple(grid)](*args, **options)


def power_of_two(count: int) -> int:
    """Return the next power of two, 1 for 0."""
    return 1 << max(0, count - 1).bit_length()


def padded(count: int) -> int:
    """Return with how many rows a product of ``count`` rows is taken."""
    size = power_of_two(count)
    return max(size, _LEAST_FOR_DOT) if size > _MOST_BY_ENTRY else size


def by_dot(count: int) -> bool:
    """Return whether a product of ``count`` rows is one of tl.dot."""
    return padded(count) >= _LEAST_FOR_DOT


def bits(value: float) -> int:
    """Return the bits of a number, for Triton would pass it in float32."""
    (integer,) = struct.unpack("<q", struct.pack("<d", value))
    return integer


class Tiles(NamedTuple):
    """How a pass over a matrix is shared out; the batch has no part in it, so neither in bits."""

    block: int
    """Columns of a program."""
    blocks: int
    rows_each: int
    """Rows of a program."""
    splits: int

    @classmethod
    def of(cls, n: int, width: int, itemsize: int) -> "Tiles":
        """Share out a real matrix (n, width)."""
        block = min(_TILE_BYTES // itemsize, max(_LEAST_FOR_DOT, power_of_two(width)))
        blocks = -(-width // block)
        splits = max(1, min(_MOST_SPLITS, _PROGRAMS // blocks))
        rows_each = max(_FEWEST_ROWS, -(-n // (splits * _FEWEST_ROWS)) * _FEWEST_ROWS)
        return cls(block, blocks, rows_each, -(-n // rows_each))


class Share(NamedTuple):
    """How programs share out the positions of vectors; the batch has no part in it either."""

    each: int
    """Positions of a program."""
    programs: int
    block: int
    """Positions that it works on at once."""

    @classmethod
    def of(cls, length: int, block: int, most: int) -> "Share":
        """Share out some positions among at most so many programs."""
        blocks = -(-length // block)
        each = max(1, -(-blocks // most)) * block
        return cls(each, max(1, -(-length // each)), block)


def carve(
    sizes: dict[str, int], count: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return memory for ``count`` times some numbers of entries, by one allocation."""
    # Addresses that 16 divides, which the compiler makes use of.
    whole = [max(1, -(-size * count // _ALIGNED)) * _ALIGNED for size in sizes.values()]
    parts = torch.empty(sum(whole), dtype=dtype, device=device).split(whole)
    return dict(zip(sizes, parts, strict=True))
