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

# Of the products of tl.dot.
PRECISION: tl.constexpr = tl.constexpr("ieee")
# Entries that a program fetches at once, of few rows or of many, and of how many partial sums.
IN_FLIGHT: tl.constexpr = tl.constexpr(2048)
IN_FLIGHT_OF_MANY: tl.constexpr = tl.constexpr(1024)
MANY: tl.constexpr = tl.constexpr(512)
MOST_AT_ONCE: tl.constexpr = tl.constexpr(32)


@triton.jit
def load_left(rows, which, at, inside, n, COUNT: tl.constexpr):
    """Load (COUNT, n) rows at some positions, (padded count, positions)."""
    mask = (which < COUNT)[:, None] & inside[None, :]
    return tl.load(rows + which[:, None] * n + at[None, :], mask=mask, other=0.0)


@triton.jit
def load_right(
    sums,
    partial,
    which,
    cols,
    inside,
    width,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
):
    """Add up (partial, COUNT, width) column sums and make of them what multiplies an adjoint."""
    mask = (which < COUNT)[:, None] & inside[None, :]
    own = which[:, None] * width + cols[None, :]
    kind = sums.dtype.element_ty
    total = add_up(sums, partial, COUNT * width, own, mask, kind, IS_ALONE)
    if PARTS == 2:
        other = (which ^ 1)[:, None] * width + (cols ^ 1)[None, :]
        value = add_up(sums, partial, COUNT * width, other, mask, kind, IS_ALONE)
        is_plus = ((which[:, None] + cols[None, :]) & 1) == 1
        total += tl.where(is_plus, value, -value)
    return total


@triton.jit
def load_sum(sums, partial, which, at, inside, n, COUNT: tl.constexpr, IS_ALONE: tl.constexpr):
    """Add up (partial, COUNT, n) row sums in float64."""
    mask = (which >= 0)[:, None] & (which < COUNT)[:, None] & inside[None, :]
    offset = which[:, None] * n + at[None, :]
    return add_up(sums, partial, COUNT * n, offset, mask, tl.float64, IS_ALONE)


@triton.jit
def add_up(sums, partial, stride, offset, mask, kind: tl.constexpr, IS_ALONE: tl.constexpr):
    """Add up partial sums in a fixed order, several at once: each load takes its time.

    With IS_ALONE there is one.
    """
    if IS_ALONE:
        return tl.load(sums + offset, mask=mask, other=0.0).to(kind)
    else:
        entries: tl.constexpr = offset.shape[0] * offset.shape[1]
        room: tl.constexpr = IN_FLIGHT if entries < MANY else IN_FLIGHT_OF_MANY
        many: tl.constexpr = room // entries if entries < room else 1
        few: tl.constexpr = many if many < MOST_AT_ONCE else MOST_AT_ONCE
        total = tl.zeros(offset.shape, kind)
        for start in range(0, partial, few):
            part = start + tl.arange(0, few)[:, None, None]
            is_there = (part < partial) & mask[None, :, :]
            value = tl.load(sums + part * stride + offset[None, :, :], mask=is_there, other=0.0)
            total += tl.sum(value.to(kind), 0)
        return total


@triton.jit
def dot(a, b):
    """Return ``a @ b``, in full precision."""
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def product(a, b, BY_DOT: tl.constexpr):
    """Return ``a @ b``; tl.dot wants at least 16 terms in each sum."""
    if BY_DOT:
        return dot(a, b)
    else:
        # Not a product and a sum of it: the compiler would make a tl.dot in TF32 of these.
        return tl.sum(tl.fma(a[:, :, None], b[None, :, :], 0.0), 1)


@triton.jit
def row_sums(rows, tile, BY_DOT: tl.constexpr):
    """Return ``rows @ tile.T``, (count, rows of the tile)."""
    if BY_DOT:
        return dot(rows, tl.trans(tile))
    else:
        return tl.sum(rows[:, None, :] * tile[None, :, :], 2)


@triton.jit
def entry_of(column, index, width, PARTS: tl.constexpr):
    """Return where in a row the parts of some columns are, from one column on and round."""
    return PARTS * ((column + index // PARTS) % (width // PARTS)) + index % PARTS
