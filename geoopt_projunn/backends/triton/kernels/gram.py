"""What programs that share out the positions of a few rows add up of them: Gram matrices."""

import triton
import triton.language as tl

from .layout import IN_FLIGHT_OF_MANY, add_up, load_left
from .small import gram_schmidt, inner_products, of_complex, swapped

# Programs that share out the positions of rows.
MOST_PROGRAMS: tl.constexpr = tl.constexpr(64)
NOTHING: tl.constexpr = tl.constexpr(2.0**-960)


@triton.jit
def paired(largest, PADDED: tl.constexpr, PARTS: tl.constexpr):
    """Return the largest entry of each row; of complex rows that of both their real ones."""
    if PARTS == 2:
        return tl.maximum(largest, swapped(largest, PADDED))
    else:
        return largest


@triton.jit
def scale_of(largest):
    """Return what takes rows to entries of at most one: squares would leave float64 early.

    Rows of which it would leave float64 itself are nothing.
    """
    return 1.0 / tl.where(largest < NOTHING, float("inf"), largest)


@triton.jit
def square_index(PADDED: tl.constexpr):
    """Return where the entries of a (PADDED, PADDED) matrix are."""
    index = tl.arange(0, PADDED)
    return index[:, None] * PADDED + index[None, :]


@triton.jit
def store_square(to, value, PADDED: tl.constexpr):
    """Store a (PADDED, PADDED) matrix."""
    tl.store(to + square_index(PADDED), value)


@triton.jit
def load_square(source, PADDED: tl.constexpr):
    """Load a (PADDED, PADDED) matrix."""
    return tl.load(source + square_index(PADDED))


@triton.jit
def store_gram(
    rows,
    gram,
    largest,
    most,
    start,
    end,
    n,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the inner products of some positions of rows, each divided by its largest entry."""
    which = tl.arange(0, PADDED)
    most = paired(most, PADDED, PARTS)
    scale = scale_of(most)[:, None]
    products = tl.zeros((PADDED, PADDED), tl.float64)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        y = load_left(rows, which, at, at < end, n, COUNT) * scale
        products += inner_products(y, y)
    store_square(gram, products, PADDED)
    tl.store(largest + which, most)


@triton.jit
def orthonormalizing(
    gram,
    largest,
    programs,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
):
    """Return what makes rows orthonormal or zero, given what all programs have stored of them."""
    which = tl.arange(0, PADDED)
    if IS_ALONE:
        scale, products = scale_of(tl.load(largest + which)), load_square(gram, PADDED)
    else:
        scale, products = products_of_all(gram, largest, programs, PADDED)
    by = gram_schmidt(of_complex(products, PARTS, PADDED), 0.0, COUNT, PADDED, PARTS)
    return by * scale[None, :]


@triton.jit
def products_of_all(gram, largest, programs, PADDED: tl.constexpr):
    """Return what rows are multiplied by, and the inner products of these, of all programs."""
    which = tl.arange(0, PADDED)
    all_programs = tl.arange(0, MOST_PROGRAMS)
    of_all = largest + all_programs[:, None] * PADDED + which[None, :]
    most = tl.load(of_all, mask=(all_programs < programs)[:, None], other=0.0)
    scale = scale_of(tl.max(most, 0))
    entries: tl.constexpr = PADDED * PADDED
    many: tl.constexpr = IN_FLIGHT_OF_MANY // entries if entries < IN_FLIGHT_OF_MANY else 1
    few: tl.constexpr = many if many < MOST_PROGRAMS else MOST_PROGRAMS
    products = tl.zeros((PADDED, PADDED), tl.float64)
    for start in range(0, programs, few):
        part = start + tl.arange(0, few)
        inside = part < programs
        offset = part[:, None, None] * (PADDED * PADDED) + square_index(PADDED)[None, :, :]
        value = tl.load(gram + offset, mask=inside[:, None, None], other=0.0)
        # What each program had divided by its own largest entries.
        own = largest + part[:, None] * PADDED + which[None, :]
        by = tl.load(own, mask=inside[:, None], other=0.0) * scale[None, :]
        products += tl.sum(value * by[:, :, None] * by[:, None, :], 0)
    return scale, products


@triton.jit
def total_of(squares, programs, PADDED: tl.constexpr, IS_ALONE: tl.constexpr):
    """Add up the (PADDED, PADDED) matrices of all programs."""
    index = square_index(PADDED)
    return add_up(squares, programs, PADDED * PADDED, index, index >= 0, tl.float64, IS_ALONE)
