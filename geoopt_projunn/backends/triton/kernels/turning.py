"""Turn a matrix, advance the state of its rule, and sweep some of its columns."""

import triton
import triton.language as tl

from .... import drift
from .directions import ADAM, ADAM_SCALAR, COLUMN, GRADIENT, MOST, NEXT, NUMBERS, direction
from .layout import entry_of, load_left, load_right, product, row_sums
from .overlap import begin

CONVERGES: tl.constexpr = tl.constexpr(drift.CONVERGES**2)


@triton.jit
def turn_kernel(
    x,
    g,
    state,
    state_second,
    state_most,
    numbers,
    finite,
    narrow,
    delta,
    sums,
    own_sums,
    errors,
    norms,
    error_sums,
    counter,
    skipped,
    n,
    width,
    rows_each,
    partial,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    SWEEP_BY_DOT: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Add the rotation to x, with the row sums of what is wrong with the columns to be swept.

    The rotation, unitary to the rounding of float64, does not change the products of columns: they
    are known from before. Nothing changes where the step is not finite.
    """
    begin(OVERLAPS, ENDS_STEP=SWEEP == 0)
    b, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    blocks = tl.num_programs(1)
    kind = x.dtype.element_ty
    of_second = b if RULE == ADAM_SCALAR else b * n * width // PARTS
    state_second += of_second
    state_most += of_second
    numbers += b * NUMBERS
    taken = tl.load(finite + b)
    if taken != 0:
        x += b * n * width
        g += b * n * width
        state += b * n * width
        cols = block * BN + tl.arange(0, BN)
        in_cols = cols < width
        which = tl.arange(0, PADDED)
        col = which[None, :]
        narrow += b * COUNT * n
        of_both = (which < COUNT)[:, None] & (col < COUNT)
        turn = tl.load(delta + (b * COUNT + which)[:, None] * COUNT + col, mask=of_both, other=0.0)
        sums += b * partial * COUNT * width
        before = load_right(sums, partial, which, cols, in_cols, width, COUNT, PARTS, IS_ALONE)
        factor = product(turn, before.to(tl.float64), BY_DOT).to(kind)
        if SWEEP > 0:
            index = tl.arange(0, SWEEP_PADDED)
            own_sums += b * partial * SWEEP * width
            error = load_right(
                own_sums, partial, index, cols, in_cols, width, SWEEP, PARTS, IS_ALONE
            )
            column = tl.load(numbers + COLUMN).to(tl.int32)
            entry = entry_of(column, index, width, PARTS)
            of_identity = tl.where((index % PARTS == 1), -1.0, 1.0).to(kind)[:, None]
            error -= tl.where(cols[None, :] == entry[:, None], of_identity, 0.0)
            of_error = (index < SWEEP)[:, None] & in_cols[None, :]
            error = tl.where(of_error, error, 0.0)
            if split == 0:
                to = errors + (b * SWEEP + index)[:, None] * width + cols[None, :]
                tl.store(to, error, mask=of_error)
                wide = error.to(tl.float64)
                tl.store(norms + b * blocks + block, tl.sum(tl.sum(wide * wide, 1), 0) / PARTS)
            error_sums += (b * blocks + block) * SWEEP * n
        end = tl.minimum(n, (split + 1) * rows_each)
        for start in tl.range(split * rows_each, end, BM, num_stages=STAGES):
            rows = start + tl.arange(0, BM)
            in_rows = rows < end
            mask = in_rows[:, None] & in_cols[None, :]
            offset = rows.to(tl.int64)[:, None] * width + cols[None, :]
            w = load_left(narrow, which, rows, in_rows, n, COUNT)
            tile = tl.load(x + offset, mask=mask, other=0.0) + product(tl.trans(w), factor, BY_DOT)
            tl.store(x + offset, tile, mask=mask)
            if SWEEP > 0:
                sums_of_tile = row_sums(error, tile, SWEEP_BY_DOT)
                at = index[:, None] * n + rows[None, :]
                tl.store(
                    error_sums + at, sums_of_tile, mask=(index < SWEEP)[:, None] & in_rows[None, :]
                )
            if RULE != GRADIENT:
                _, after, moment, largest = direction(
                    g, state, state_second, state_most, numbers, offset, mask, RULE, HAS_MOST, PARTS
                )
                tl.store(state + offset, after, mask=mask)
                if RULE == ADAM:
                    # Both parts of a complex entry have the same, and must have read it.
                    if PARTS == 2:
                        tl.debug_barrier()
                    tl.store(state_second + offset // PARTS, moment, mask=mask)
                    if HAS_MOST:
                        tl.store(state_most + offset // PARTS, largest, mask=mask)
    if block == 0 and split == 0:
        if taken != 0:
            if RULE == ADAM_SCALAR:
                kept = state_second.dtype.element_ty
                tl.store(state_second, tl.load(numbers + NEXT).to(kept))
                if HAS_MOST:
                    tl.store(state_most, tl.load(numbers + MOST).to(kept))
            tl.store(counter + b, tl.load(counter + b) + 1)
        else:
            tl.store(skipped + b, tl.load(skipped + b) + 1.0)


@triton.jit
def sweep_kernel(
    x,
    numbers,
    finite,
    errors,
    norms,
    error_sums,
    n,
    width,
    blocks,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    SWEEP_BY_DOT: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Correct the columns whose turn it is, unless they are too far off.

    The programs of all matrices are in one row, for only there CUDA takes more than 65535.
    """
    begin(OVERLAPS, ENDS_STEP=True)
    program, programs = tl.program_id(0), tl.cdiv(n, BM)
    b = (program // programs).to(tl.int64)
    rows = program % programs * BM + tl.arange(0, BM)
    in_rows, index = rows < n, tl.arange(0, SWEEP_PADDED)
    square = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        square += tl.load(norms + b * blocks + at, mask=at < blocks, other=0.0)
    if (tl.load(finite + b) != 0) & (tl.sum(square, 0) < CONVERGES):
        column = tl.load(numbers + b * NUMBERS + COLUMN).to(tl.int32)
        entry = entry_of(column, index, width, PARTS)
        mask = (index < SWEEP)[:, None] & in_rows[None, :]
        to = x + (b * n + rows)[None, :] * width + entry[:, None]
        is_imaginary = (index % PARTS == 1)[:, None]
        value = tl.load(to, mask=mask, other=0.0)
        # The adjoint columns.
        value = tl.where(is_imaginary, -value, value)
        of_both = (index < SWEEP)[:, None] & (index < SWEEP)[None, :]
        within = tl.load(
            errors + (b * SWEEP + index)[:, None] * width + entry[None, :], mask=of_both, other=0.0
        )
        within = tl.where((index % PARTS == 1)[None, :], -within, within)
        part = error_sums + b * blocks * SWEEP * n
        dots = tl.zeros((SWEEP_PADDED, BM), value.dtype)
        for _ in range(blocks):
            dots += tl.load(part + index[:, None] * n + rows[None, :], mask=mask, other=0.0)
            part += SWEEP * n
        mended = value - dots + 0.5 * product(within, value, SWEEP_BY_DOT)
        tl.store(to, tl.where(is_imaginary, -mended, mended), mask=mask)
