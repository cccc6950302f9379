"""Orthonormal rows, and the core of a step in their basis: one program for each matrix.

Rows are made orthonormal by their Gram matrix, twice: each is a pass over the rows and a small
matrix, and the second mends what rounding leaves of the first.
"""

import triton
import triton.language as tl

from .directions import COLUMN, NUMBERS, SEEN, number
from .layout import entry_of, load_left, load_sum
from .mixing import in_turn
from .normalization import AS_LONG, norm_of, normalized, skew
from .retractions import retracted
from .small import gram_schmidt, of_complex, times

TANGENT: tl.constexpr = tl.constexpr(0)
LSI: tl.constexpr = tl.constexpr(1)


@triton.jit
def scales_of(largest, PADDED: tl.constexpr, PARTS: tl.constexpr):
    """Return what takes each row to size one: squares leave the range of float64 early."""
    if PARTS == 2:
        index = tl.arange(0, PADDED)
        swapped = tl.where((index ^ 1)[:, None] == index[None, :], largest[None, :], 0.0)
        largest = tl.maximum(largest, tl.sum(swapped, 1))
    return 1.0 / tl.where(largest == 0.0, 1.0, largest)


@triton.jit
def orthonormalize(
    rows,
    firsts,
    n,
    largest,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write first orthonormal rows, (COUNT, n), and return what makes the final ones of them."""
    which = tl.arange(0, PADDED)
    scale = scales_of(largest, PADDED, PARTS)[:, None]
    products = tl.zeros((PADDED, PADDED), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        y = load_left(rows, which, at, at < n, n, COUNT) * scale
        products += times(y, tl.trans(y))
    by = gram_schmidt(of_complex(products, PARTS, PADDED), COUNT, PADDED, PARTS)
    products = tl.zeros((PADDED, PADDED), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        y = times(by, load_left(rows, which, at, at < n, n, COUNT) * scale)
        products += times(y, tl.trans(y))
        mask = (which < COUNT)[:, None] & (at < n)[None, :]
        tl.store(firsts + which[:, None] * n + at[None, :], y, mask=mask)
    tl.debug_barrier()
    return gram_schmidt(of_complex(products, PARTS, PADDED), COUNT, PADDED, PARTS)


@triton.jit
def basis_kernel(
    plus,
    minus,
    numbers,
    partial,
    rows,
    firsts,
    narrow,
    wide,
    n,
    width,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    OF_COLUMN_SUMS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Orthonormalize the difference of two row sums, or column sums of real rows."""
    b = tl.program_id(0).to(tl.int64)
    which = tl.arange(0, PADDED)
    rows += b * COUNT * n
    firsts += b * COUNT * n
    largest = tl.zeros((PADDED,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        if OF_COLUMN_SUMS:
            # Row PARTS j holds both parts in turn, the next one zeros.
            first = plus + b * partial * COUNT * width
            y = tl.zeros((PADDED, BLOCK), tl.float64)
            offset = (which - which % PARTS)[:, None] * width
            offset += PARTS * at[None, :] + (which % PARTS)[:, None]
            mask = (which < COUNT)[:, None] & (at < n)[None, :]
            for _ in range(partial):
                y += tl.load(first + offset, mask=mask, other=0.0).to(tl.float64)
                first += COUNT * width
        else:
            of_matrix = b * partial * COUNT * n
            y = load_sum(plus + of_matrix, partial, which, at, at < n, n, COUNT)
            square += tl.sum(y * y, 0)
            y -= load_sum(minus + of_matrix, partial, which, at, at < n, n, COUNT)
        largest = tl.maximum(largest, tl.max(tl.abs(y), 1))
        mask = (which < COUNT)[:, None] & (at < n)[None, :]
        tl.store(rows + which[:, None] * n + at[None, :], y, mask=mask)
    tl.store(numbers + b * NUMBERS + SEEN, tl.sqrt(tl.sum(square, 0)))
    tl.debug_barrier()
    by = orthonormalize(rows, firsts, n, largest, COUNT, PADDED, PARTS, BLOCK)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = (which < COUNT)[:, None] & (at < n)[None, :]
        q = times(by, load_left(firsts, which, at, at < n, n, COUNT))
        if OF_COLUMN_SUMS:
            to = narrow + b * COUNT * width
            offset = (which - which % PARTS)[:, None] * width
            offset += PARTS * at[None, :] + (which % PARTS)[:, None]
            tl.store(to + offset, q.to(narrow.dtype.element_ty), mask=mask)
            if PARTS == 2:
                offset += width
                tl.store(to + offset, tl.zeros_like(q).to(narrow.dtype.element_ty), mask=mask)
        else:
            to = (b * COUNT + which)[:, None] * n + at[None, :]
            tl.store(narrow + to, q.to(narrow.dtype.element_ty), mask=mask)
            tl.store(wide + to, q, mask=mask)


@triton.jit(do_not_specialize=["floor"])
def core_kernel(
    x,
    above,
    plus,
    minus,
    bad,
    counter,
    numbers,
    rows,
    firsts,
    narrow,
    delta,
    own,
    finite,
    floor,
    partial,
    programs,
    n,
    width,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    SKETCH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    IS_LIMITED: tl.constexpr,
    RETRACTION: tl.constexpr,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make the rotation of a step, and fetch the columns whose turn it is to be swept.

    Tangent: the rows are ``above``, (COUNT, n), and half the difference of two row sums. LSI: the
    sums of ``plus`` and those of ``minus``.
    """
    b = tl.program_id(0).to(tl.int64)
    BOTH: tl.constexpr = 2 * COUNT
    which = tl.arange(0, PADDED)
    rows += b * BOTH * n
    firsts += b * BOTH * n
    largest = tl.zeros((PADDED,), tl.float64)
    of_matrix = b * partial * COUNT * n
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < n
        below = which - COUNT
        if SKETCH == TANGENT:
            y = load_sum(plus + of_matrix, partial, below, at, inside, n, COUNT)
            y -= load_sum(minus + of_matrix, partial, below, at, inside, n, COUNT)
            y = 0.5 * y + load_left(above + b * COUNT * n, which, at, inside, n, COUNT)
        else:
            y = load_sum(plus + of_matrix, partial, which, at, inside, n, COUNT)
            y += load_sum(minus + of_matrix, partial, below, at, inside, n, COUNT)
        largest = tl.maximum(largest, tl.max(tl.abs(y), 1))
        mask = (which < BOTH)[:, None] & inside[None, :]
        tl.store(rows + which[:, None] * n + at[None, :], y, mask=mask)
    tl.debug_barrier()
    by = orthonormalize(rows, firsts, n, largest, BOTH, PADDED, PARTS, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((PADDED, PADDED), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        w = times(by, load_left(firsts, which, at, at < n, n, BOTH))
        products += times(w, tl.trans(load_left(rows, which, at, at < n, n, BOTH)))
        total += tl.sum(w, 0)
        mask = (which < BOTH)[:, None] & (at < n)[None, :]
        to = narrow + (b * BOTH + which)[:, None] * n + at[None, :]
        tl.store(to, w.to(narrow.dtype.element_ty), mask=mask)
    core = core_of(of_complex(products, PARTS, PADDED), SKETCH, COUNT, PADDED)
    numbers += b * NUMBERS
    length = tl.load(numbers)
    if NORMALIZE == AS_LONG:
        core *= length
    else:
        seen = tl.load(numbers + SEEN) if SKETCH == TANGENT else norm_of(core, PARTS)
        # Rounding of a normal direction; what is not a number stays one.
        is_rounding = norm_of(skew(core), PARTS) <= seen * number(floor)
        core = tl.where(is_rounding, 0.0, core)
        core = normalized(core, length, NORMALIZE, IS_LIMITED, BOTH, PARTS)
    turn = retracted(core, RETRACTION, BOTH, PADDED, PARTS)
    col = tl.arange(0, PADDED)[None, :]
    to = delta + (b * BOTH + which)[:, None] * BOTH + col
    tl.store(to, turn, mask=(which < BOTH)[:, None] & (col < BOTH))

    # No entry exceeds 2: the sums cannot overflow.
    sum_of_all = tl.sum(total, 0) + tl.sum(tl.sum(turn, 1), 0)
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += tl.load(bad + b * programs + at, mask=at < programs, other=0)
    is_finite = (sum_of_all - sum_of_all == 0.0) & (tl.sum(found, 0) == 0)
    tl.store(finite + b, is_finite.to(tl.int32))

    if SWEEP > 0:
        index = tl.arange(0, SWEEP_PADDED)
        column = in_turn(tl.load(counter + b), SWEEP // PARTS, 0, width // PARTS)
        tl.store(numbers + COLUMN, column.to(tl.float64))
        entry = entry_of(column, index, width, PARTS)
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = (index < SWEEP)[:, None] & (at < n)[None, :]
            offset = at.to(tl.int64)[None, :] * width + entry[:, None]
            value = tl.load(x + b * n * width + offset, mask=mask, other=0.0)
            # The adjoint columns.
            value = tl.where((index % PARTS == 1)[:, None], -value, value)
            tl.store(own + (b * SWEEP + index)[:, None] * n + at[None, :], value, mask=mask)


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
