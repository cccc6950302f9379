"""The product of a row and a matrix that a program takes again and again.

It is a sum of products, in the precision of the entries. A complex matrix has its real parts first,
then all its imaginary ones; a complex row has both parts of an entry side by side. Numbers are
tuples of their parts, so that those of a real one have one.
"""

import triton
import triton.language as tl


@triton.jit
def add_product(
    given,
    z,
    at,
    n,
    is_there,
    matrix,
    kept,
    IS_COMPLEX: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Add the product of the row that starts at ``at``, if it is there, and the matrix."""
    vector: tl.tuple = ()
    for down in tl.static_range(DOWN):
        place = down * ROWS + tl.arange(0, ROWS)
        vector += (load(z, at + place, (place < n) & is_there, IS_COMPLEX),)
    re: tl.tuple = ()
    im: tl.tuple = ()
    for across in tl.static_range(ACROSS):
        block = _product(vector, matrix, kept, across, IS_COMPLEX, DOWN, ACROSS, ROWS, BLOCK, KEPT)
        re += (block[0],)
        if IS_COMPLEX:
            im += (block[1],)
    own_re = given[0] + tl.where(is_there, _sums(re, ACROSS, BLOCK), 0.0)
    if IS_COMPLEX:
        return own_re, given[1] + tl.where(is_there, _sums(im, ACROSS, BLOCK), 0.0)
    else:
        return (own_re,)


@triton.jit
def tiles(
    matrix,
    IS_COMPLEX: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Return the first tiles of the matrix, block by block of its columns."""
    kept: tl.tuple = ()
    for number in tl.static_range(KEPT):
        kept += (_tile(matrix, number, IS_COMPLEX, DOWN, ACROSS, ROWS, BLOCK),)
    return kept


@triton.jit
def _tile(
    matrix,
    number: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = number % DOWN * ROWS + tl.arange(0, ROWS)
    column = number // DOWN * BLOCK + tl.arange(0, BLOCK)
    at = row[:, None] * (ACROSS * BLOCK) + column[None, :]
    re = tl.load(matrix + at)
    if IS_COMPLEX:
        return re, tl.load(matrix + DOWN * ROWS * ACROSS * BLOCK + at)
    else:
        return (re,)


@triton.jit
def _product(
    vector,
    matrix,
    kept,
    across: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Return a block of the product of a row vector and the matrix."""
    re = tl.zeros((ROWS, BLOCK), matrix.dtype.element_ty)
    im = re
    for down in tl.static_range(DOWN):
        if across * DOWN + down < KEPT:
            tile = kept[across * DOWN + down]
        else:
            tile = _tile(matrix, across * DOWN + down, IS_COMPLEX, DOWN, ACROSS, ROWS, BLOCK)
        own = vector[down]
        re += tile[0] * own[0][:, None]
        if IS_COMPLEX:
            re -= tile[1] * own[1][:, None]
            im += tile[0] * own[1][:, None]
            im += tile[1] * own[0][:, None]
    return (re, im) if IS_COMPLEX else (re,)


@triton.jit
def _sums(blocks, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sums of columns of one to four blocks, in one row; a fourth may be zeros.

    All are summed at once, for threads have to wait for each other in a sum.
    """
    if COUNT == 1:
        return tl.sum(blocks[0], 0)
    elif COUNT == 2:
        sums = tl.sum(tl.join(blocks[0], blocks[1]), 0)
        return tl.reshape(tl.permute(sums, 1, 0), (2 * BLOCK,))
    else:
        last = blocks[3] if COUNT == 4 else tl.zeros_like(blocks[2])
        halves = tl.join(tl.join(blocks[0], blocks[1]), tl.join(blocks[2], last))
        return tl.reshape(tl.permute(tl.sum(halves, 0), 2, 1, 0), (4 * BLOCK,))


@triton.jit
def load(z, at, known, IS_COMPLEX: tl.constexpr):
    """Return the parts of entries; threads need not exchange what each loads on its own."""
    if IS_COMPLEX:
        return tl.load(z + 2 * at, known, 0.0), tl.load(z + 2 * at + 1, known, 0.0)
    else:
        return (tl.load(z + at, known, 0.0),)


@triton.jit
def store(z, at, known, own, IS_COMPLEX: tl.constexpr):
    """Set the parts of entries."""
    if IS_COMPLEX:
        tl.store(z + 2 * at, own[0], known)
        tl.store(z + 2 * at + 1, own[1], known)
    else:
        tl.store(z + at, own[0], known)
