r"""How rows lie in memory, and sums over the tiles of a matrix.

A complex matrix (n, p) is read as the real one (n, 2p) that it is in memory, real and imaginary
parts in turn. ``PARTS`` is 1 for real matrices and 2 for complex ones, ``width`` is PARTS p.

- Row j of length n, which multiplies a matrix from the left, is PARTS real rows: PARTS j holds the
  real parts and PARTS j + 1 the imaginary ones. Products of these with the real matrix are the
  *column sums* A and B: the complex product is A + iB.
- A row a of length p, which multiplies the adjoint, is made of column sums: a and -ia, real and
  imaginary parts in turn. Their inner products with the rows of the real matrix are the *row sums*,
  the real and the imaginary parts of the product.

So the result of row sums multiplies from the left again, and that of column sums, after
:func:`load_right`, the adjoint. Sums over several programs stay apart, as *partial sums*, until
somebody reads them, in a fixed order: no bit depends on which program is the first.
"""

import triton
import triton.language as tl


@triton.jit
def load_left(rows, which, at, inside, n, COUNT: tl.constexpr):
    """Load (COUNT, n) rows at some positions, (padded count, positions)."""
    mask = (which < COUNT)[:, None] & inside[None, :]
    return tl.load(rows + which[:, None] * n + at[None, :], mask=mask, other=0.0)


@triton.jit
def load_right(sums, partial, which, cols, inside, width, COUNT: tl.constexpr, PARTS: tl.constexpr):
    """Add up (partial, COUNT, width) column sums and make of them what multiplies an adjoint."""
    mask = (which < COUNT)[:, None] & inside[None, :]
    own = which[:, None] * width + cols[None, :]
    other = (which ^ 1)[:, None] * width + (cols ^ 1)[None, :]
    is_plus = ((which[:, None] + cols[None, :]) & 1) == 1
    total = tl.zeros(own.shape, sums.dtype.element_ty)
    for _ in range(partial):
        total += tl.load(sums + own, mask=mask, other=0.0)
        if PARTS == 2:
            value = tl.load(sums + other, mask=mask, other=0.0)
            total += tl.where(is_plus, value, -value)
        sums += COUNT * width
    return total


@triton.jit
def load_sum(sums, partial, which, at, inside, n, COUNT: tl.constexpr):
    """Add up (partial, COUNT, n) row sums in float64."""
    mask = (which >= 0)[:, None] & (which < COUNT)[:, None] & inside[None, :]
    offset = which[:, None] * n + at[None, :]
    total = tl.zeros(offset.shape, tl.float64)
    for _ in range(partial):
        total += tl.load(sums + offset, mask=mask, other=0.0).to(tl.float64)
        sums += COUNT * n
    return total


@triton.jit
def product(a, b, BY_DOT: tl.constexpr):
    """Return ``a @ b`` in full precision; tl.dot wants at least 16 terms in each sum."""
    if BY_DOT:
        return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)
    else:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)


@triton.jit
def row_sums(rows, tile, BY_DOT: tl.constexpr):
    """Return ``rows @ tile.T``, (count, rows of the tile)."""
    if BY_DOT:
        return tl.dot(rows, tl.trans(tile), input_precision="ieee", out_dtype=tile.dtype)
    else:
        return tl.sum(rows[:, None, :] * tile[None, :, :], 2)


@triton.jit
def entry_of(column, index, width, PARTS: tl.constexpr):
    """Return where in a row the parts of some columns are, from one column on and round."""
    return PARTS * ((column + index // PARTS) % (width // PARTS)) + index % PARTS
