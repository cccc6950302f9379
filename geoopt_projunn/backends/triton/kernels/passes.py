"""Products of a few rows with a matrix, by one pass over it."""

import triton
import triton.language as tl

from .directions import ADAM_SCALAR, NUMBERS, direction, is_bad
from .layout import dot, load_left, load_right, row_sums
from .overlap import begin


@triton.jit
def added(total, rows, tile, BY_DOT: tl.constexpr):
    """Add what a tile gives to column sums."""
    if BY_DOT:
        return total + dot(rows, tile)
    else:
        return total + rows[:, :, None] * tile[None, :, :]


@triton.jit
def started(
    kind: tl.constexpr,
    COUNT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BY_DOT: tl.constexpr,
):
    """Return column sums of nothing: of few rows each thread adds up its own entries."""
    if BY_DOT:
        return tl.zeros((COUNT, BN), kind)
    else:
        return tl.zeros((COUNT, BM, BN), kind)


@triton.jit
def store_sums(sums, total, which, cols, inside, width, COUNT: tl.constexpr, BY_DOT: tl.constexpr):
    """Store the column sums of one program."""
    value = total if BY_DOT else tl.sum(total, 1)
    mask = (which < COUNT)[:, None] & inside[None, :]
    tl.store(sums + which[:, None] * width + cols[None, :], value, mask=mask)


@triton.jit
def pass_kernel(
    g,
    state,
    state_second,
    state_most,
    numbers,
    left,
    more,
    right,
    left_sums,
    more_sums,
    right_sums,
    bad,
    squares,
    n,
    width,
    rows_each,
    partial,
    LEFT: tl.constexpr,
    MORE: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT_PADDED: tl.constexpr,
    MORE_PADDED: tl.constexpr,
    RIGHT_PADDED: tl.constexpr,
    LEFT_BY_DOT: tl.constexpr,
    MORE_BY_DOT: tl.constexpr,
    RIGHT_BY_DOT: tl.constexpr,
    IS_CHECKED: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write partial column sums of ``left`` and ``more``, and row sums of ``right``.

    A program has BN columns and ``rows_each`` rows. The matrix is a gradient, of which a rule makes
    a direction, or any matrix with the rule GRADIENT. With IS_CHECKED ``bad`` says where the
    direction or the next state is not finite, and of ADAM_SCALAR ``squares`` are the partial sums
    of squares of the gradient.
    """
    begin(OVERLAPS)
    b, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    blocks, splits = tl.num_programs(1), tl.num_programs(2)
    kind = g.dtype.element_ty
    g += b * n * width
    state += b * n * width
    of_second = b if RULE == ADAM_SCALAR else b * n * width // PARTS
    state_second += of_second
    state_most += of_second
    numbers += b * NUMBERS
    left += b * LEFT * n
    more += b * MORE * n
    cols = block * BN + tl.arange(0, BN)
    in_cols = cols < width
    which_left, which_more = tl.arange(0, LEFT_PADDED), tl.arange(0, MORE_PADDED)
    which_right = tl.arange(0, RIGHT_PADDED)
    if LEFT > 0:
        of_left = started(kind, LEFT_PADDED, BM, BN, LEFT_BY_DOT)
    if MORE > 0:
        of_more = started(kind, MORE_PADDED, BM, BN, MORE_BY_DOT)
    if RIGHT > 0:
        right += b * partial * RIGHT * width
        by = load_right(right, partial, which_right, cols, in_cols, width, RIGHT, PARTS, IS_ALONE)
        right_sums += (b * blocks + block) * RIGHT * n
    if IS_CHECKED:
        found = tl.zeros((BM, BN), tl.int32)
        if RULE == ADAM_SCALAR:
            square = tl.zeros((BN,), tl.float64)
    end = tl.minimum(n, (split + 1) * rows_each)
    for start in tl.range(split * rows_each, end, BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        in_rows = rows < end
        mask = in_rows[:, None] & in_cols[None, :]
        offset = rows.to(tl.int64)[:, None] * width + cols[None, :]
        tile, after, moment, _ = direction(
            g, state, state_second, state_most, numbers, offset, mask, RULE, HAS_MOST, PARTS
        )
        if RIGHT > 0:
            sums = row_sums(by, tile, RIGHT_BY_DOT)
            at = which_right[:, None] * n + rows[None, :]
            tl.store(right_sums + at, sums, mask=(which_right < RIGHT)[:, None] & in_rows[None, :])
        if LEFT > 0:
            of_left = added(
                of_left, load_left(left, which_left, rows, in_rows, n, LEFT), tile, LEFT_BY_DOT
            )
        if MORE > 0:
            of_more = added(
                of_more, load_left(more, which_more, rows, in_rows, n, MORE), tile, MORE_BY_DOT
            )
        if IS_CHECKED:
            is_wrong = is_bad(tile, mask) | is_bad(after, mask) | is_bad(moment, mask)
            found = tl.where(is_wrong, 1, found)
            if RULE == ADAM_SCALAR:
                grad = tl.load(g + offset, mask=mask, other=0.0).to(tl.float64)
                square += tl.sum(grad * grad, 0)
    program = b * splits + split
    if LEFT > 0:
        to = left_sums + program * LEFT * width
        store_sums(to, of_left, which_left, cols, in_cols, width, LEFT, LEFT_BY_DOT)
    if MORE > 0:
        to = more_sums + program * MORE * width
        store_sums(to, of_more, which_more, cols, in_cols, width, MORE, MORE_BY_DOT)
    if IS_CHECKED:
        tl.store(bad + program * blocks + block, tl.max(tl.max(found, 1), 0))
        if RULE == ADAM_SCALAR:
            tl.store(squares + program * blocks + block, tl.sum(square, 0))
