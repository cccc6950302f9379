r"""Functions of small real matrices in float64, in one program.

A complex matrix is the real one with the blocks [[Re, -Im], [Im, Re]]: products, adjoints, inverses
and exponentials of these are those of the complex ones. Sizes are padded with zeros to a power of
two. The smallest stay in the registers of each thread; from 16 on, which tl.dot wants, tl.dot
multiplies them.
"""

import triton
import triton.language as tl

from .layout import product, row_sums

LEAST_FOR_DOT: tl.constexpr = tl.constexpr(16)
# A remainder below this fraction of its row, squared, is dropped: the second pass can then mend
# what rounding leaves of the first.
DEPENDENT: tl.constexpr = tl.constexpr(1e-12)
# Rows are of length one after the first pass. The remainder of a shorter one, by its square, was
# rounding, which a second pass cannot mend.
HALF: tl.constexpr = tl.constexpr(0.25)


@triton.jit
def times(a, b):
    """Return ``a @ b``, for ``a`` square."""
    return product(a, b, a.shape[0] >= LEAST_FOR_DOT)


@triton.jit
def inner_products(a, b):
    """Return ``a @ b.T``, of a few long rows."""
    return row_sums(a, b, a.shape[0] >= LEAST_FOR_DOT)


@triton.jit
def eye(COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Return the identity of size COUNT."""
    i, j = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    return tl.where((i == j) & (i < COUNT), 1.0, 0.0).to(tl.float64)


@triton.jit
def square_of_norm(a):
    """Return the sum of all squares."""
    return tl.sum(tl.sum(a * a, 1), 0)


@triton.jit
def norm_of(a, PARTS: tl.constexpr):
    """Return the Frobenius norm; of a complex matrix every entry is there twice."""
    return tl.sqrt(square_of_norm(a) / PARTS)


@triton.jit
def skew(core):
    """Return the skew part."""
    return 0.5 * (core - tl.trans(core))


@triton.jit
def swapped(numbers, PADDED: tl.constexpr):
    """Return numbers of which neighbours have changed places."""
    index = tl.arange(0, PADDED)
    return tl.sum(tl.where((index ^ 1)[:, None] == index[None, :], numbers[None, :], 0.0), 1)


@triton.jit
def divided(a, by):
    """Return ``a`` divided by a number, zero where that is zero."""
    is_zero = by == 0.0
    return tl.where(is_zero, 0.0, a / tl.where(is_zero, 1.0, by))


@triton.jit
def times_i(PADDED: tl.constexpr):
    """Return the matrix of a product with i, [[0, -1], [1, 0]] along the diagonal."""
    i, j = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    return tl.where(i == (j ^ 1), tl.where(i < j, -1.0, 1.0), 0.0).to(tl.float64)


@triton.jit
def of_complex(products, PARTS: tl.constexpr, PADDED: tl.constexpr):
    """Make of the inner products of real rows those of the complex rows that they stand for."""
    if PARTS == 2:
        i = times_i(PADDED)
        return products + times(times(i, products), tl.trans(i))
    else:
        return products


@triton.jit
def gram_schmidt(
    gram,
    LEAST: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Return T such that the rows of T Y are orthonormal or zero, for rows Y with a Gram matrix.

    Zero where less than ``LEAST`` is left of the square of a row, or next to nothing of it.
    """
    index = tl.arange(0, PADDED)
    basis = tl.zeros((PADDED, PADDED), tl.float64)
    for row in range(0, COUNT, PARTS):
        products = tl.sum(tl.where((index == row)[None, :], gram, 0.0), 1)
        along = tl.sum(basis * products[None, :], 1)
        size = tl.sum(tl.where(index == row, products, 0.0), 0)
        rest = size - tl.sum(along * along, 0)
        fresh = tl.where(index == row, 1.0, 0.0) - tl.sum(basis * along[:, None], 0)
        # Also where the rest is not a number, which has to show.
        is_nothing = rest <= size * DEPENDENT
        if LEAST > 0.0:
            is_nothing = is_nothing | (rest <= LEAST)
        fresh *= tl.where(is_nothing, 0.0, 1.0 / tl.sqrt(tl.where(is_nothing, 1.0, rest)))
        basis += tl.where((index == row)[:, None], fresh[None, :], 0.0)
        if PARTS == 2:
            others = swapped(fresh, PADDED)
            turned = tl.where((index & 1) == 1, others, -others)
            basis += tl.where((index == row + 1)[:, None], turned[None, :], 0.0)
    return basis


@triton.jit
def solve(a, b, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Return the inverse of ``a`` times ``b``, by elimination with pivots."""
    index = tl.arange(0, PADDED)
    is_left = tl.where(index < COUNT, 1, 0)
    order = tl.zeros((PADDED, PADDED), tl.float64)
    for col in range(COUNT):
        entries = tl.sum(tl.where((index == col)[None, :], a, 0.0), 1)
        # Among numbers: where none is left, the result is none, whichever row is taken.
        is_number = entries == entries
        pivot = tl.argmax(tl.where((is_left == 1) & is_number, tl.abs(entries), -1.0), 0)
        is_pivot = index == pivot
        by = 1.0 / tl.sum(tl.where(is_pivot, entries, 0.0), 0)
        row_a = tl.sum(tl.where(is_pivot[:, None], a, 0.0), 0) * by
        row_b = tl.sum(tl.where(is_pivot[:, None], b, 0.0), 0) * by
        others = tl.where(is_pivot, 0.0, entries)
        a = tl.where(is_pivot[:, None], row_a[None, :], a - others[:, None] * row_a[None, :])
        b = tl.where(is_pivot[:, None], row_b[None, :], b - others[:, None] * row_b[None, :])
        is_left = tl.where(is_pivot, 0, is_left)
        order += tl.where((index == col)[:, None] & is_pivot[None, :], 1.0, 0.0)
    return times(order, b)
