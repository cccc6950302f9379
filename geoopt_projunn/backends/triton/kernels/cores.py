"""The core of a step, in an orthonormal basis of what it moves, and the rotation it becomes."""

import triton
import triton.language as tl

from .arrivals import TICKETS, is_last
from .directions import (
    ADAM_SCALAR,
    COLUMN,
    DIVISOR,
    LENGTH,
    MOST,
    NEXT,
    NUMBERS,
    SEEN,
    number,
)
from .gram import load_square, orthonormalizing, store_gram, store_square, total_of
from .layout import entry_of, load_left, load_sum
from .mixing import in_turn
from .normalization import AS_LONG, length_of, normalized
from .overlap import begin
from .retractions import retracted
from .small import HALF, gram_schmidt, inner_products, of_complex, skew, times

TANGENT: tl.constexpr = tl.constexpr(0)
LSI: tl.constexpr = tl.constexpr(1)


@triton.jit
def twice(again, COUNT: tl.constexpr, OF_BASIS: tl.constexpr, PADDED: tl.constexpr):
    """Return a (COUNT, COUNT) matrix two times on the diagonal."""
    i, j = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    is_second = i >= COUNT
    row, col = tl.where(is_second, i - COUNT, i), tl.where(j >= COUNT, j - COUNT, j)
    mask = (is_second == (j >= COUNT)) & (row < COUNT) & (col < COUNT)
    return tl.load(again + row * OF_BASIS + col, mask=mask, other=0.0)


@triton.jit
def collect_kernel(
    x,
    above,
    plus,
    minus,
    counter,
    numbers,
    tickets,
    again,
    rows,
    gram,
    largest,
    by,
    own,
    each,
    partial,
    n,
    width,
    COUNT: tl.constexpr,
    OF_BASIS: tl.constexpr,
    PADDED: tl.constexpr,
    SKETCH: tl.constexpr,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write the rows of which a step is made, what is to multiply them, and columns to be swept.

    Tangent: the rows are ``above``, (COUNT, n), and half the difference of two row sums. LSI: the
    sums of ``plus`` and those of ``minus``. Of a basis that ``again`` has yet to multiply.
    """
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs = tl.num_programs(1)
    BOTH: tl.constexpr = 2 * COUNT
    which = tl.arange(0, PADDED)
    rows += b * BOTH * n
    gram += b * programs * PADDED * PADDED
    largest += b * programs * PADDED
    of_matrix = b * partial * COUNT * n
    mending = twice(again + b * OF_BASIS * OF_BASIS, COUNT, OF_BASIS, PADDED)
    start = program * each
    end = tl.minimum(n, start + each)
    most = tl.zeros((PADDED,), tl.float64)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        below = which - COUNT
        if SKETCH == TANGENT:
            y = load_sum(plus + of_matrix, partial, below, at, inside, n, COUNT, IS_ALONE)
            y -= load_sum(minus + of_matrix, partial, below, at, inside, n, COUNT, IS_ALONE)
            y = 0.5 * y + load_left(above + b * COUNT * n, which, at, inside, n, COUNT)
        else:
            y = load_sum(plus + of_matrix, partial, which, at, inside, n, COUNT, IS_ALONE)
            y += load_sum(minus + of_matrix, partial, below, at, inside, n, COUNT, IS_ALONE)
        y = times(mending, y)
        most = tl.maximum(most, tl.max(tl.abs(y), 1))
        mask = (which < BOTH)[:, None] & inside[None, :]
        tl.store(rows + which[:, None] * n + at[None, :], y, mask=mask)
    if SWEEP > 0:
        index = tl.arange(0, SWEEP_PADDED)
        column = in_turn(tl.load(counter + b), SWEEP // PARTS, 0, width // PARTS)
        tl.store(numbers + b * NUMBERS + COLUMN, column.to(tl.float64))
        entry = entry_of(column, index, width, PARTS)
        for first in range(start, end, BLOCK):
            at = first + tl.arange(0, BLOCK)
            mask = (index < SWEEP)[:, None] & (at < end)[None, :]
            offset = at.to(tl.int64)[None, :] * width + entry[:, None]
            value = tl.load(x + b * n * width + offset, mask=mask, other=0.0)
            # The adjoint columns.
            value = tl.where((index % PARTS == 1)[:, None], -value, value)
            tl.store(own + (b * SWEEP + index)[:, None] * n + at[None, :], value, mask=mask)
    tl.debug_barrier()
    store_gram(
        rows,
        gram + program * PADDED * PADDED,
        largest + program * PADDED,
        most,
        start,
        end,
        n,
        BOTH,
        PADDED,
        PARTS,
        BLOCK,
    )
    if is_last(tickets + b * TICKETS + 2, programs, IS_ALONE):
        made = orthonormalizing(gram, largest, programs, BOTH, PADDED, PARTS, IS_ALONE)
        store_square(by + b * PADDED * PADDED, made, PADDED)


@triton.jit(do_not_specialize=["floor"])
def core_kernel(
    bad,
    numbers,
    tickets,
    rows,
    by,
    gram,
    products,
    narrow,
    delta,
    finite,
    floor,
    each,
    checked,
    n,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    SKETCH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    IS_LIMITED: tl.constexpr,
    RETRACTION: tl.constexpr,
    RULE: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write the basis of a step, and the rotation in it, P - I.

    The basis is orthonormal but for rounding, which the rotation makes up for: with W = T Y the
    step is x + W^T (P - I) W x, and what is written are Y and T^T (P - I) T.
    """
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs = tl.num_programs(1)
    BOTH: tl.constexpr = 2 * COUNT
    which = tl.arange(0, PADDED)
    rows += b * BOTH * n
    gram += b * programs * PADDED * PADDED
    products += b * programs * PADDED * PADDED
    made = load_square(by + b * PADDED * PADDED, PADDED)
    of_basis = tl.zeros((PADDED, PADDED), tl.float64)
    with_rows = tl.zeros((PADDED, PADDED), tl.float64)
    end = tl.minimum(n, (program + 1) * each)
    for first in range(program * each, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        y = load_left(rows, which, at, inside, n, BOTH)
        w = times(made, y)
        of_basis += inner_products(w, w)
        with_rows += inner_products(w, y)
        mask = (which < BOTH)[:, None] & inside[None, :]
        to = narrow + (b * BOTH + which)[:, None] * n + at[None, :]
        tl.store(to, w.to(narrow.dtype.element_ty), mask=mask)
    store_square(gram + program * PADDED * PADDED, of_basis, PADDED)
    store_square(products + program * PADDED * PADDED, with_rows, PADDED)
    if is_last(tickets + b * TICKETS + 3, programs, IS_ALONE):
        of_basis = of_complex(total_of(gram, programs, PADDED, IS_ALONE), PARTS, PADDED)
        mending = gram_schmidt(of_basis, HALF, BOTH, PADDED, PARTS)
        with_rows = of_complex(total_of(products, programs, PADDED, IS_ALONE), PARTS, PADDED)
        core = core_of(times(mending, with_rows), SKETCH, COUNT, PADDED)
        numbers += b * NUMBERS
        if RULE == ADAM_SCALAR:
            core /= tl.load(numbers + DIVISOR)
        length = tl.load(numbers + LENGTH)
        if NORMALIZE == AS_LONG:
            core *= length
        else:
            if SKETCH == TANGENT:
                seen = tl.load(numbers + SEEN)
                if RULE == ADAM_SCALAR:
                    seen /= tl.load(numbers + DIVISOR)
            else:
                seen = length_of(core, PARTS)
            # Rounding of a normal direction; what is not a number stays one.
            is_rounding = length_of(skew(core), PARTS) <= seen * number(floor)
            core = tl.where(is_rounding, 0.0, core)
            core = normalized(core, length, NORMALIZE, IS_LIMITED, BOTH, PARTS)
        turn = retracted(core, RETRACTION, BOTH, PADDED, PARTS)
        turn = times(tl.trans(mending), times(turn, mending))
        col = tl.arange(0, PADDED)[None, :]
        to = delta + (b * BOTH + which)[:, None] * BOTH + col
        tl.store(to, turn, mask=(which < BOTH)[:, None] & (col < BOTH))

        # No entry exceeds 2: the sums cannot overflow.
        total = tl.sum(tl.sum(of_basis, 1), 0) + tl.sum(tl.sum(turn, 1), 0)
        if RULE == ADAM_SCALAR:
            total += tl.load(numbers + NEXT) * 0.0 + tl.load(numbers + MOST) * 0.0
        bads = tl.arange(0, 256)
        found = tl.zeros((256,), tl.int32)
        for first in range(0, checked, 256):
            at = first + bads
            found += tl.load(bad + b * checked + at, mask=at < checked, other=0)
        is_finite = (total - total == 0.0) & (tl.sum(found, 0) == 0)
        tl.store(finite + b, is_finite.to(tl.int32))


@triton.jit
def core_of(products, SKETCH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Return the core, given the inner products of the basis with the rows it was made of."""
    i, j = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    alpha = tl.where(j < COUNT, products, 0.0)
    moved = tl.where((i == j + COUNT) & (j < COUNT), 1.0, 0.0).to(tl.float64)
    beta = times(products, moved)
    if SKETCH == LSI:
        return times(alpha, tl.trans(beta))
    else:
        half = beta - 0.5 * times(alpha, times(tl.trans(alpha), beta))
        half = times(half, tl.trans(alpha))
        return half - tl.trans(half)
