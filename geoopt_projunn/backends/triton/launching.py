"""Launch kernels, and say what a GPU kernel is told about sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch

from .programs import Number, bits_of, recorder
from .support import TILE_BYTES

MANY_WARPS = 8
"""Of a program that keeps much in registers."""
BM = 16
"""Rows of a tile."""
MOST_IN_GRID = 2**16 - 1
"""Programs along all axes of a grid but the first, as CUDA allows them."""
# Of a program of four warps.
_THREADS = 128
# A small matrix has at most so many rows.
_FEW_ROWS = 64
# With so many registers a thread, five programs of four warps fit on a multiprocessor. They suffice
# for bases of so many padded rows.
_FEW_REGISTERS = 96
_FEW_OF_BASIS = 4
# From this size on, where registers have room, the row of a tile is twice as long.
_LARGE = 2**24
# Of these nothing is fetched ahead: they are in work at once. In float64 tiles are shorter.
_FEW_TILES = 2
# Programs that keep a large GPU busy, and the most partial sums that are worth that.
_PROGRAMS = 512
_MOST_SPLITS = 16
_FEWEST_ROWS = 32
# Up to here products are sums of products of entries, above of tl.dot.
_MOST_BY_ENTRY = 4
_LEAST_FOR_DOT = 16
_ALIGNED = 32


def launch(
    kernel: Any, grid: Sequence[int], *args: Any, starts_early: bool = False, **options: Any
) -> None:
    """Run a kernel on a grid of programs; the next step like this one may run it without this.

    One that starts early is scheduled while the kernel before it runs, and has to begin with
    :func:`.kernels.overlap.begin`.
    """
    if starts_early:
        options["launch_pdl"] = True
    named = {name: _value_of(value) for name, value in options.items()}
    compiled = kernel[tuple(grid)](*map(_value_of, args), **named)
    if (record := recorder()) is not None:
        record.launched(compiled, kernel, tuple(grid), args, options)


def _value_of(value: Any) -> Any:
    return value.bits if isinstance(value, Number) else value


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


def registers(rows: int) -> dict[str, Any]:
    """Return the option that limits the registers of a program of a whole step, if any does."""
    return {"maxnreg": _FEW_REGISTERS} if rows <= _FEW_OF_BASIS else {}


def warps(rows: int) -> int:
    """Return how many warps a program needs for some padded rows in float64."""
    return 4 if rows <= BM else MANY_WARPS


@overload
def bits(value: float) -> int: ...
@overload
def bits(value: Number) -> Number: ...
def bits(value: float | Number) -> int | Number:
    """Return the bits of a number, for Triton would pass it in float32."""
    return value if isinstance(value, Number) else bits_of((value,))[0]


class Tiles(NamedTuple):
    """How a pass over a matrix is shared out; the batch has no part in it, so neither in bits."""

    block: int
    """Columns of a program."""
    blocks: int
    rows_each: int
    """Rows of a program."""
    splits: int
    is_small: bool
    """Whether one program takes the whole step of a matrix."""

    @classmethod
    def of(cls, n: int, width: int, itemsize: int, *, has_room: bool) -> "Tiles":
        """Share out a real matrix (n, width)."""
        is_large = has_room and n * width * itemsize >= _LARGE
        longest = TILE_BYTES * (1 + is_large) // itemsize
        block = min(longest, max(_LEAST_FOR_DOT, power_of_two(width)))
        blocks = -(-width // block)
        is_small = n <= _FEW_ROWS and blocks == 1
        splits = 1 if is_small else max(1, min(_MOST_SPLITS, _PROGRAMS // blocks))
        rows_each = max(_FEWEST_ROWS, -(-n // (splits * _FEWEST_ROWS)) * _FEWEST_ROWS)
        return cls(block, blocks, rows_each, -(-n // rows_each), is_small)


def rows_of_tile(tiles: Tiles, dtype: torch.dtype, *, by_dot: bool, is_gradient: bool) -> int:
    """Return as many rows as there is room for beside sums and what a rule makes of a gradient."""
    is_double = dtype == torch.float64
    if by_dot:
        return 2 * BM if is_gradient and not is_double else BM
    if tiles.is_small:
        # With fewer registers more programs run at once. But an entry that several threads hold
        # could be stored by one of them before another has read it.
        few = BM // 2 if is_gradient and not is_double else BM // 4
        return max(few, _THREADS // tiles.block)
    return BM // 4 if is_double else BM


def stages(tiles: Tiles, rows: int, dtype: torch.dtype, *, is_gradient: bool) -> int:
    """Return how many tiles a program of so many rows has in work: it fetches the next ahead."""
    if tiles.is_small:
        return 2
    if rows <= _FEW_TILES * BM and dtype == torch.float32:
        return 1
    return 3 if is_gradient else 2


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
    memory = torch.empty(sum(whole), dtype=dtype, device=device)
    if (record := recorder()) is not None:
        record.allocated(memory)
    return dict(zip(sizes, memory.split(whole), strict=True))
