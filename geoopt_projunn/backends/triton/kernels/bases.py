"""Orthonormal rows, by two kernels whose programs share out the positions.

Rows are made orthonormal by their Gram matrix, twice: the second time mends what rounding leaves of
the first. Each kernel ends with one program that adds up the Gram matrices of all and finds what
makes the rows orthonormal. That of the second is close to the identity and never multiplies the
rows: everything until the core is linear in them, so that the core's kernels apply it to less.
"""

import triton
import triton.language as tl

from .arrivals import TICKETS, is_last
from .directions import ADAM_SCALAR, NUMBERS, SEEN, prepare_scalar
from .gram import (
    MOST_PROGRAMS,
    load_square,
    orthonormalizing,
    scale_of,
    store_gram,
    store_square,
    total_of,
)
from .layout import load_left, load_sum
from .overlap import begin
from .small import HALF, gram_schmidt, inner_products, of_complex, times


@triton.jit
def norm_of_row(row):
    """Return the norm of positive numbers of any size, whose squares may leave float64."""
    largest = tl.max(row, 0)
    scaled = row * scale_of(largest)
    return largest * tl.sqrt(tl.sum(scaled * scaled, 0))


@triton.jit
def gather_kernel(
    plus,
    minus,
    numbers,
    tickets,
    squares,
    state_second,
    state_most,
    rows,
    gram,
    largest,
    seen,
    by,
    each,
    partial,
    checked,
    n,
    width,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    OF_COLUMN_SUMS: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write rows, the difference of two row sums or real column sums, and what is to multiply them.

    A program has ``each`` positions. Of ADAM_SCALAR the last program ends what the pass before has
    begun, with the squares of ``checked`` programs.
    """
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs = tl.num_programs(1)
    which = tl.arange(0, PADDED)
    rows += b * COUNT * n
    gram += b * programs * PADDED * PADDED
    largest += b * programs * PADDED
    seen += b * programs
    start = program * each
    end = tl.minimum(n, start + each)
    most = tl.zeros((PADDED,), tl.float64)
    # Of what a generator is the difference of: the largest entries, and squares divided by theirs.
    longest = tl.zeros((PADDED,), tl.float64)
    square = tl.zeros((PADDED,), tl.float64)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        mask = (which < COUNT)[:, None] & inside[None, :]
        if OF_COLUMN_SUMS:
            # Row PARTS j holds both parts in turn, the next one zeros.
            source = plus + b * partial * COUNT * width
            offset = (which - which % PARTS)[:, None] * width
            offset += PARTS * at[None, :] + (which % PARTS)[:, None]
            y = tl.zeros((PADDED, BLOCK), tl.float64)
            for _ in range(partial):
                y += tl.load(source + offset, mask=mask, other=0.0).to(tl.float64)
                source += COUNT * width
        else:
            of_matrix = b * partial * COUNT * n
            y = load_sum(plus + of_matrix, partial, which, at, inside, n, COUNT, IS_ALONE)
            before = longest
            longest = tl.maximum(before, tl.max(tl.abs(y), 1))
            scale = scale_of(longest)
            shorter, scaled = before * scale, y * scale[:, None]
            square = square * shorter * shorter + tl.sum(scaled * scaled, 1)
            y -= load_sum(minus + of_matrix, partial, which, at, inside, n, COUNT, IS_ALONE)
        most = tl.maximum(most, tl.max(tl.abs(y), 1))
        tl.store(rows + which[:, None] * n + at[None, :], y, mask=mask)
    tl.debug_barrier()
    store_gram(
        rows,
        gram + program * PADDED * PADDED,
        largest + program * PADDED,
        most,
        start,
        end,
        n,
        COUNT,
        PADDED,
        PARTS,
        BLOCK,
    )
    tl.store(seen + program, norm_of_row(longest * tl.sqrt(square)))
    if is_last(tickets + b * TICKETS, programs, IS_ALONE):
        numbers += b * NUMBERS
        at = tl.arange(0, 1 if IS_ALONE else MOST_PROGRAMS)
        of_all = tl.load(seen + at, mask=at < programs, other=0.0)
        tl.store(numbers + SEEN, norm_of_row(of_all))
        made = orthonormalizing(gram, largest, programs, COUNT, PADDED, PARTS, IS_ALONE)
        store_square(by + b * PADDED * PADDED, made, PADDED)
        if RULE == ADAM_SCALAR:
            prepare_scalar(
                numbers,
                squares + b * checked,
                checked,
                state_second + b,
                state_most + b,
                HAS_MOST,
                BLOCK,
            )


@triton.jit
def basis_kernel(
    tickets,
    rows,
    by,
    gram,
    narrow,
    wide,
    again,
    each,
    n,
    width,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    OF_COLUMN_SUMS: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write rows that are orthonormal but for rounding, and ``again``, what mends that."""
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs = tl.num_programs(1)
    which = tl.arange(0, PADDED)
    rows += b * COUNT * n
    gram += b * programs * PADDED * PADDED
    made = load_square(by + b * PADDED * PADDED, PADDED)
    products = tl.zeros((PADDED, PADDED), tl.float64)
    end = tl.minimum(n, (program + 1) * each)
    for first in range(program * each, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        mask = (which < COUNT)[:, None] & inside[None, :]
        q = times(made, load_left(rows, which, at, inside, n, COUNT))
        products += inner_products(q, q)
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
    store_square(gram + program * PADDED * PADDED, products, PADDED)
    if is_last(tickets + b * TICKETS + 1, programs, IS_ALONE):
        products = of_complex(total_of(gram, programs, PADDED, IS_ALONE), PARTS, PADDED)
        made = gram_schmidt(products, HALF, COUNT, PADDED, PARTS)
        store_square(again + b * PADDED * PADDED, made, PADDED)
