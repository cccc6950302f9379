"""The product of a matrix and a vector that a program takes again and again.

It is a sum of products, in the precision of the entries. A complex matrix has its real parts first,
then all its imaginary ones; a complex vector has both parts of an entry side by side. Numbers are
tuples of their parts, of which real ones have one.

A tile has BLOCK rows and as many columns as a piece of the vector, LENGTH. Of these a few
neighbours in a warp have all, so that no warp has to wait for another to add up a row.
"""

import triton
import triton.language as tl


@triton.jit
def tiles(
    matrix,
    IS_COMPLEX: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Return the first tiles of the matrix, block by block of its rows."""
    kept: tl.tuple = ()
    for number in tl.static_range(KEPT):
        kept += (_tile(matrix, number, IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH),)
    return kept


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
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Add the product with the vector that starts at ``at``, if it is there."""
    vector: tl.tuple = ()
    for piece in tl.static_range(PIECES):
        place = piece * LENGTH + tl.arange(0, LENGTH)
        vector += (load(z, at + place, (place < n) & is_there, IS_COMPLEX),)
    re: tl.tuple = ()
    im: tl.tuple = ()
    for block in tl.static_range(BLOCKS):
        own = _product(vector, matrix, kept, block, IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH, KEPT)
        re += (own[0],)
        if IS_COMPLEX:
            im += (own[1],)
    own_re = given[0] + tl.where(is_there, _joined(re, BLOCKS, BLOCK), 0.0)
    if IS_COMPLEX:
        return own_re, given[1] + tl.where(is_there, _joined(im, BLOCKS, BLOCK), 0.0)
    else:
        return (own_re,)


@triton.jit
def _product(
    vector,
    matrix,
    kept,
    block: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Return a block of the product."""
    re = tl.zeros((BLOCK, LENGTH), matrix.dtype.element_ty)
    im = re
    for piece in tl.static_range(PIECES):
        if block * PIECES + piece < KEPT:
            tile = kept[block * PIECES + piece]
        else:
            tile = _tile(matrix, block * PIECES + piece, IS_COMPLEX, BLOCKS, PIECES, BLOCK, LENGTH)
        own = vector[piece]
        re += tile[0] * own[0][None, :]
        if IS_COMPLEX:
            re -= tile[1] * own[1][None, :]
            im += tile[0] * own[1][None, :]
            im += tile[1] * own[0][None, :]
    if IS_COMPLEX:
        return tl.sum(re, 1), tl.sum(im, 1)
    else:
        return (tl.sum(re, 1),)


@triton.jit
def _tile(
    matrix,
    number: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
):
    row = number // PIECES * BLOCK + tl.arange(0, BLOCK)
    column = number % PIECES * LENGTH + tl.arange(0, LENGTH)
    at = row[:, None] * (PIECES * LENGTH) + column[None, :]
    re = tl.load(matrix + at)
    if IS_COMPLEX:
        return re, tl.load(matrix + BLOCKS * BLOCK * PIECES * LENGTH + at)
    else:
        return (re,)


@triton.jit
def _joined(blocks, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return one to four blocks as one; a fourth that is not there is 0."""
    if COUNT == 1:
        return blocks[0]
    elif COUNT == 2:
        return tl.reshape(tl.permute(tl.join(blocks[0], blocks[1]), 1, 0), (2 * BLOCK,))
    else:
        last = blocks[3] if COUNT == 4 else tl.zeros_like(blocks[2])
        halves = tl.join(tl.join(blocks[0], blocks[1]), tl.join(blocks[2], last))
        return tl.reshape(tl.permute(halves, 2, 1, 0), (4 * BLOCK,))


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
