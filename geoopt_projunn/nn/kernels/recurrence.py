r"""All time steps of a modReLU recurrence in one launch each way.

A program takes one row of the batch through all steps. Rows do not depend on each other, so
programs never wait for each other, and the bits of a row do not depend on the other rows. At each
step a program multiplies the whole matrix by its vector, as sums of products in the precision of
the tensors. As many tiles of the matrix as there is room for stay in registers, the others are
read again at each step, from the cache of the multiprocessor.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activation import least_divisor
from . import modrelu, vector_products
from .launching import launch

_BLOCK = 64
_LENGTH = 32
_MOST_BLOCKS = 4
_WARPS = 8
_THREADS = 32 * _WARPS
# Of the 255 registers of a thread, four bytes each, as many as tiles may take where there are no
# other tiles, and where there are. More would not fit beside what a step needs: compilers say so.
_REGISTERS = {
    torch.float32: (144, 88),
    torch.float64: (112, 64),
    torch.complex64: (128, 64),
    torch.complex128: (96, 32),
}
# Bytes that are read again at each step: less than the 256 kB of an H100's multiprocessor, in which
# they should stay; not yet measured.
_CACHED = 14 * 2**14
# Rows, and bytes of the matrix times rows. Of a larger batch most programs wait until others are
# done: a product of all rows, a step at a time, is estimated to be faster.
_MOST_ROWS = 2048
_MOST_BYTES = 1024 * 144 * 2**10


class Tiling(NamedTuple):
    """How a program takes a matrix apart: into tiles of ``_BLOCK`` rows and ``_LENGTH`` columns."""

    blocks: int
    pieces: int
    kept: int
    """Tiles that stay in registers."""

    @classmethod
    def of(cls, rows: int, n: int, dtype: torch.dtype) -> "Tiling | None":
        """Return that of matrices (n, n), None if they or so many rows are too large for this.

        Half precision has none either.
        """
        if dtype not in _REGISTERS:
            return None
        if rows > min(_MOST_ROWS, _MOST_BYTES // (n * n * dtype.itemsize)):
            return None
        blocks, pieces = triton.cdiv(n, _BLOCK), triton.cdiv(n, _LENGTH)
        tiles, size = blocks * pieces, _BLOCK * _LENGTH * dtype.itemsize
        most, beside_others = (4 * _THREADS * each // size for each in _REGISTERS[dtype])
        kept = tiles if tiles <= most else beside_others
        if blocks > _MOST_BLOCKS or (tiles - kept) * size > _CACHED:
            return None
        return cls(blocks, pieces, kept)


class Loop:
    """What takes steps of a modReLU recurrence, all with one matrix.

    Parameters
    ----------
    matrix : torch.Tensor
        (n, n); its product with a row of one step is added to that row of the next
    offset : torch.Tensor or None
        (n,), of the modReLU; the gradients of a real one do not need it
    tiling : Tiling
        of the matrix
    """

    def __init__(self, matrix: Tensor, offset: Tensor | None, tiling: Tiling) -> None:
        n = matrix.shape[0]
        matrix = matrix.resolve_conj()
        entries = torch.view_as_real(matrix).movedim(-1, 0) if matrix.is_complex() else matrix[None]
        # One part after the other, with zeros at the ends of rows and columns.
        self._matrix = entries.new_zeros(
            len(entries), tiling.blocks * _BLOCK, tiling.pieces * _LENGTH
        )
        self._matrix[:, :n, :n].copy_(entries)
        self._offset = self._matrix if offset is None else offset.contiguous()
        self._eps = torch.finfo(matrix.dtype).eps
        self._constants: dict[str, Any] = {
            "TINY": least_divisor(matrix.dtype),
            "IS_COMPLEX": matrix.is_complex(),
            "BLOCKS": tiling.blocks,
            "PIECES": tiling.pieces,
            "BLOCK": _BLOCK,
            "LENGTH": _LENGTH,
            "KEPT": tiling.kept,
            "WIDTH": triton.next_power_of_2(tiling.blocks * _BLOCK),
            "num_warps": _WARPS,
            # A state must not be fetched before it is there.
            "num_stages": 1,
        }

    def forward_(self, first: Tensor, steps: int, stride: int) -> None:
        """Replace what the input adds by states; at the first step there is no product.

        ``first`` (rows, n), contiguous, is the first of the steps, which are ``stride`` entries
        apart in memory.
        """
        given = (self._matrix, self._offset, first.shape[1], steps, stride)
        self._launch(_forward, first, *given)

    def backward_(
        self, last: Tensor, states: Tensor, along: Tensor | None, steps: int, stride: int
    ) -> None:
        """Replace gradients of h by those of z; at the last step, the first here, no product.

        ``last`` (rows, n) and the states of that step are contiguous, and the others ``stride``
        entries apart. The gradient of the offset is added to ``along``, row by row, if there is
        such a tensor.
        """
        watch = along is not None
        into = along if watch else self._matrix
        given = (states, self._matrix, self._offset, into, last.shape[1], steps, stride)
        self._launch(_backward, last, *given, WATCH=watch, EPS=self._eps)

    def _launch(self, kernel: Any, rows: Tensor, *given: Any, **constants: Any) -> None:
        first, *others = [
            torch.view_as_real(t) if isinstance(t, Tensor) and t.is_complex() else t
            for t in (rows, *given)
        ]
        launch(kernel, len(rows), first, *others, **constants, **self._constants)


@triton.jit(
    do_not_specialize=["n", "steps", "stride"], do_not_specialize_on_alignment=["states", "offset"]
)
def _forward(
    states,
    matrix,
    offset,
    n,
    steps,
    stride,
    TINY: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    kept = vector_products.tiles(matrix, IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH, KEPT)
    column = tl.arange(0, WIDTH)
    known = column < n
    b = tl.load(offset + column, known, 0.0)
    now = tl.program_id(0).to(tl.int64) * n
    given = vector_products.load(states, now + column, known, IS_COMPLEX)
    for step in range(steps):
        # From far memory, a step ahead.
        following = vector_products.load(
            states, now + stride + column, known & (step + 1 < steps), IS_COMPLEX
        )
        # All threads see what any of them stored before the barrier, in whatever cache it is.
        tl.debug_barrier()
        own = vector_products.add_product(
            given,
            *(states, now - stride, n, step > 0, matrix, kept),
            *(IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH, KEPT),
        )
        if IS_COMPLEX:
            own = modrelu.of_complex(own[0], own[1], b, TINY)
        else:
            own = (modrelu.of_real(own[0], b),)
        vector_products.store(states, now + column, known, own, IS_COMPLEX)
        now += stride
        given = following


@triton.jit(
    do_not_specialize=["n", "steps", "stride"],
    do_not_specialize_on_alignment=["grad", "states", "offset", "along"],
)
def _backward(
    grad,
    states,
    matrix,
    offset,
    along,
    n,
    steps,
    stride,
    WATCH: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    kept = vector_products.tiles(matrix, IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH, KEPT)
    column = tl.arange(0, WIDTH)
    known = column < n
    if IS_COMPLEX:
        b = tl.load(offset + column, known, 0.0)
    row = tl.program_id(0).to(tl.int64) * n
    total = tl.load(along + row + column, known & WATCH, 0.0)
    now = row
    given = vector_products.load(grad, now + column, known, IS_COMPLEX)
    h = vector_products.load(states, now + column, known, IS_COMPLEX)
    for step in range(steps):
        is_there = known & (step + 1 < steps)
        following = vector_products.load(grad, now + stride + column, is_there, IS_COMPLEX)
        following_h = vector_products.load(states, now + stride + column, is_there, IS_COMPLEX)
        tl.debug_barrier()
        own = vector_products.add_product(
            given,
            *(grad, now - stride, n, step > 0, matrix, kept),
            *(IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH, KEPT),
        )
        if IS_COMPLEX:
            of_offset, re, im = modrelu.back_of_complex(own[0], own[1], h[0], h[1], b, TINY, EPS)
            own = re, im
        else:
            of_offset, re = modrelu.back_of_real(own[0], h[0])
            own = (re,)
        total += of_offset
        vector_products.store(grad, now + column, known, own, IS_COMPLEX)
        now += stride
        given, h = following, following_h
    if WATCH:
        tl.store(along + row + column, total, known)
