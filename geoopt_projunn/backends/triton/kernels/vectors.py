"""Test vectors from what was mixed, and their products with x, in one pass."""

import triton
import triton.language as tl

from .directions import number
from .layout import load_left
from .mixing import uniform
from .overlap import begin
from .passes import added, started, store_sums

TINY: tl.constexpr = tl.constexpr(2.0**-1022)
# Programs that mix.
MOST_PROGRAMS: tl.constexpr = tl.constexpr(64)


@triton.jit
def lengths(
    sums, programs, which, anywhere, kind: tl.constexpr, K: tl.constexpr, IS_ALONE: tl.constexpr
):
    """Return the lengths of mixed vectors, and the share of noise that each gets."""
    at = tl.arange(0, 1 if IS_ALONE else MOST_PROGRAMS)
    mask = (which < K)[:, None] & (at < programs)[None, :]
    source = sums + 2 * (at[None, :] * K + which[:, None])
    square = tl.sum(tl.load(source, mask=mask, other=0.0), 1)
    toward = tl.sum(tl.load(source + 1, mask=mask, other=0.0), 1)
    share = tl.where(toward < 0.0, -1.0, 1.0) * anywhere
    return tl.maximum(tl.sqrt(square), TINY), share.to(kind)


@triton.jit
def tested(mixed, length, noise, share):
    """Return a mixed vector at length one, with some noise."""
    kind = mixed.dtype
    return (mixed.to(tl.float64) / length).to(kind) + noise.to(kind) * share


@triton.jit
def test_vector(
    mixed, rows, taken, length, share, cols, inside, width, count, is_kept, PARTS: tl.constexpr
):
    """Return a part of the test vector as row sums want it, (PARTS, cols); write it if asked."""
    total = count + width // PARTS
    noise = uniform(taken, total, count + cols // PARTS)
    row = tl.load(mixed + cols, mask=inside, other=0.0)
    row = tested(row, length, tl.where(cols % PARTS == 0, noise, 0.0), share)
    if is_kept:
        tl.store(rows + cols, row, mask=inside)
        if PARTS == 2:
            tl.store(rows + width + cols, tl.zeros_like(row), mask=inside)
    by = row[None, :]
    if PARTS == 2:
        # The vector times -i.
        other = tl.load(mixed + (cols ^ 1), mask=inside, other=0.0)
        other = tested(other, length, tl.where(cols % PARTS == 1, noise, 0.0), share)
        turned = tl.where(cols % 2 == 0, other, -other)
        by = tl.where(tl.arange(0, PARTS)[:, None] == 0, by, turned[None, :])
    return tl.where(inside[None, :], by, 0.0)


@triton.jit(do_not_specialize=["anywhere"])
def row_sums_kernel(
    x,
    mixed,
    sums,
    counter,
    rows,
    products,
    anywhere,
    programs,
    n,
    width,
    count,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write one test vector of length p, and its row sums with x.

    A program has BM whole rows; with IS_ALONE it has all rows, of at most BN entries. In memory a
    complex vector is the row of both its parts in turn and a row of zeros, as column sums are.
    ``anywhere`` is the bits of a float64.
    """
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = x.dtype.element_ty
    which = tl.arange(0, PARTS)
    x += b * n * width
    mixed += b * PARTS * width
    rows += b * PARTS * width
    products += b * PARTS * n
    taken = tl.load(counter + b)
    own = tl.arange(0, 1)
    length, share = lengths(
        sums + b * programs * 2, programs, own, number(anywhere), kind, 1, IS_ALONE
    )
    if IS_ALONE:
        cols = tl.arange(0, BN)
        inside = cols < width
        by = test_vector(mixed, rows, taken, length, share, cols, inside, width, count, True, PARTS)
        for start in tl.range(0, n, BM, num_stages=STAGES):
            at = start + tl.arange(0, BM)
            in_rows = at < n
            offset = at[:, None] * width + cols[None, :]
            tile = tl.load(x + offset, mask=in_rows[:, None] & inside[None, :], other=0.0)
            result = tl.sum(by[:, None, :] * tile[None, :, :], 2)
            tl.store(products + which[:, None] * n + at[None, :], result, mask=in_rows[None, :])
    else:
        at = program * BM + tl.arange(0, BM)
        in_rows = at < n
        result = tl.zeros((PARTS, BM, BN), kind)
        for start in tl.range(0, width, BN, num_stages=STAGES):
            cols = start + tl.arange(0, BN)
            inside = cols < width
            offset = at.to(tl.int64)[:, None] * width + cols[None, :]
            tile = tl.load(x + offset, mask=in_rows[:, None] & inside[None, :], other=0.0)
            by = test_vector(
                mixed, rows, taken, length, share, cols, inside, width, count, program == 0, PARTS
            )
            result += by[:, None, :] * tile[None, :, :]
        to = products + which[:, None] * n + at[None, :]
        tl.store(to, tl.sum(result, 2), mask=in_rows[None, :])


@triton.jit(do_not_specialize=["anywhere"])
def column_sums_kernel(
    x,
    mixed,
    sums,
    counter,
    rows,
    products,
    anywhere,
    programs,
    n,
    width,
    count,
    rows_each,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    PARTS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Write K test vectors of length n, and their partial column sums with x."""
    begin(OVERLAPS)
    b, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kind = x.dtype.element_ty
    COUNT: tl.constexpr = K * PARTS
    which = tl.arange(0, PADDED)
    x += b * n * width
    mixed += b * COUNT * n
    rows += b * COUNT * n
    cols = block * BN + tl.arange(0, BN)
    in_cols = cols < width
    taken = tl.load(counter + b)
    total = count + n
    length, share = lengths(
        sums + b * programs * K * 2, programs, which // PARTS, number(anywhere), kind, K, IS_ALONE
    )
    of_columns = started(kind, PADDED, BM, BN, BY_DOT)
    end = tl.minimum(n, (split + 1) * rows_each)
    for start in tl.range(split * rows_each, end, BM, num_stages=STAGES):
        at = start + tl.arange(0, BM)
        inside = at < end
        noise = uniform(taken, K * total, (which // PARTS)[:, None] * total + count + at[None, :])
        noise = tl.where((which % PARTS == 0)[:, None], noise, 0.0)
        value = load_left(mixed, which, at, inside, n, COUNT)
        value = tested(value, length[:, None], noise, share[:, None])
        mask = (which < COUNT)[:, None] & inside[None, :]
        value = tl.where(mask, value, 0.0)
        if block == 0:
            tl.store(rows + which[:, None] * n + at[None, :], value, mask=mask)
        offset = at.to(tl.int64)[:, None] * width + cols[None, :]
        tile = tl.load(x + offset, mask=inside[:, None] & in_cols[None, :], other=0.0)
        of_columns = added(of_columns, value, tile, BY_DOT)
    to = products + (b * tl.num_programs(2) + split) * COUNT * width
    store_sums(to, of_columns, which, cols, in_cols, width, COUNT, BY_DOT)
