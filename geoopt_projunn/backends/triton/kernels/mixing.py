"""The test vectors of a sketch: hashed combinations of a few columns or rows of a direction."""

import triton
import triton.language as tl

from .directions import ADAM_SCALAR, NUMBERS, direction, number, prepare
from .layout import row_sums

# As in geoopt_projunn.linalg.hashing.
MIX_1: tl.constexpr = tl.constexpr(0x21F0AAAD)
MIX_2: tl.constexpr = tl.constexpr(0x735A2D97)
MASK: tl.constexpr = tl.constexpr(0xFFFFFFFF)
SPACING: tl.constexpr = tl.constexpr(2.0**-31)
OFFSET: tl.constexpr = tl.constexpr(2.0**-32 - 1.0)
TINY: tl.constexpr = tl.constexpr(2.0**-1022)

# What test vectors are made of.
ROWS: tl.constexpr = tl.constexpr(0)
COLUMNS: tl.constexpr = tl.constexpr(1)
NOISE: tl.constexpr = tl.constexpr(2)


@triton.jit
def uniform(counter, total, index):
    """Return numbers of geoopt_projunn.linalg.hashing.uniform(counter, total), bit for bit."""
    start = (counter & MASK) * total
    bits = (index.to(tl.int64) + 1 + start) & MASK
    bits = ((bits ^ (bits >> 16)) * MIX_1) & MASK
    bits = ((bits ^ (bits >> 15)) * MIX_2) & MASK
    bits = bits ^ (bits >> 15)
    return bits.to(tl.float64) * SPACING + OFFSET


@triton.jit
def in_turn(counter, count, index, n):
    """Return which of n columns are those of a step that takes ``count`` of them."""
    turn = (counter * count + index) % n
    return tl.where(turn < 0, turn + n, turn)


@triton.jit
def draw(
    rows,
    taken,
    n,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write K rows of random numbers."""
    which = tl.arange(0, K_PADDED)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = (which < K)[:, None] & (at < n)[None, :]
        value = uniform(taken, K * n, which[:, None] * n + at[None, :]).to(rows.dtype.element_ty)
        to = rows + PARTS * which[:, None] * n + at[None, :]
        tl.store(to, value, mask=mask)
        if PARTS == 2:
            tl.store(to + n, tl.zeros_like(value), mask=mask)


@triton.jit
def mix_rows(
    g,
    state,
    state_second,
    state_most,
    numbers,
    raw,
    rows,
    taken,
    anywhere,
    n,
    width,
    count,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one vector of length p, as a column sum, made of the next rows of the direction."""
    kind = rows.dtype.element_ty
    total = count + width // PARTS
    square = tl.zeros((BLOCK,), tl.float64)
    sign = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        mixed = tl.zeros((BLOCK,), kind)
        for i in range(count):
            offset = in_turn(taken, count, i, n) * width + at
            d, _, _, _ = direction(
                g, state, state_second, state_most, numbers, offset, inside, RULE, HAS_MOST, PARTS
            )
            mixed += uniform(taken, total, i + 0 * at).to(kind) * d
        wide = mixed.to(tl.float64)
        square += wide * wide
        sign += tl.where(at % PARTS == 0, wide, 0.0)
        tl.store(raw + at, mixed, mask=inside)
    tl.debug_barrier()
    norm = tl.maximum(tl.sqrt(tl.sum(square, 0)), TINY)
    share = (tl.where(tl.sum(sign, 0) < 0.0, -1.0, 1.0) * anywhere).to(kind)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        unit = (tl.load(raw + at, mask=inside, other=0.0).to(tl.float64) / norm).to(kind)
        noise = uniform(taken, total, count + at // PARTS).to(kind) * share
        tl.store(rows + at, unit + tl.where(at % PARTS == 0, noise, 0.0), mask=inside)
        if PARTS == 2:
            tl.store(rows + width + at, tl.zeros_like(unit), mask=inside)


@triton.jit
def mix_columns(
    g,
    state,
    state_second,
    state_most,
    numbers,
    raw,
    rows,
    taken,
    anywhere,
    n,
    width,
    count,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    COUNT_PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write K rows of length n, made of the next adjoint columns of the direction."""
    kind = rows.dtype.element_ty
    which, index = tl.arange(0, K_PADDED), tl.arange(0, COUNT_PADDED)
    total = count + n
    turn = in_turn(taken, count, index, width // PARTS)
    by = uniform(taken, K * total, which[:, None] * total + index[None, :]).to(kind)
    by = tl.where((which < K)[:, None] & (index < count)[None, :], by, 0.0)
    square = tl.zeros((K_PADDED,), tl.float64)
    sign = tl.zeros((K_PADDED,), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = (which < K)[:, None] & (at < n)[None, :]
        inside = (at < n)[:, None] & (index < count)[None, :]
        for part in tl.static_range(PARTS):
            offset = at.to(tl.int64)[:, None] * width + turn[None, :] * PARTS + part
            d, _, _, _ = direction(
                g, state, state_second, state_most, numbers, offset, inside, RULE, HAS_MOST, PARTS
            )
            mixed = row_sums(by, d, BY_DOT)
            if part == 1:
                mixed = -mixed
            wide = mixed.to(tl.float64)
            square += tl.sum(wide * wide, 1)
            if part == 0:
                sign += tl.sum(wide, 1)
            tl.store(raw + (PARTS * which + part)[:, None] * n + at[None, :], mixed, mask=mask)
    tl.debug_barrier()
    norm = tl.maximum(tl.sqrt(square), TINY)[:, None]
    share = (tl.where(sign < 0.0, -1.0, 1.0) * anywhere).to(kind)[:, None]
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = (which < K)[:, None] & (at < n)[None, :]
        noise = uniform(taken, K * total, which[:, None] * total + count + at[None, :]).to(kind)
        for part in tl.static_range(PARTS):
            to = (PARTS * which + part)[:, None] * n + at[None, :]
            unit = (tl.load(raw + to, mask=mask, other=0.0).to(tl.float64) / norm).to(kind)
            if part == 0:
                unit += noise * share
            tl.store(rows + to, unit, mask=mask)


@triton.jit(do_not_specialize=["length", "first", "second", "third", "anywhere"])
def mix_kernel(
    g,
    state,
    state_second,
    state_most,
    counter,
    rate,
    squares,
    numbers,
    raw,
    rows,
    length,
    first,
    second,
    third,
    anywhere,
    n,
    width,
    count,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    COUNT_PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    OF: tl.constexpr,
    HAS_RATE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare the numbers of one matrix and draw its test vectors; ``raw`` is memory to work in.

    ``length``, ``first``, ``second``, ``third`` and ``anywhere`` are the bits of float64; with
    HAS_RATE the length is that of a unit of the learning rate.
    """
    b = tl.program_id(0).to(tl.int64)
    g += b * n * width
    state += b * n * width
    of_second = b if RULE == ADAM_SCALAR else b * n * width // PARTS
    state_second += of_second
    state_most += of_second
    numbers += b * NUMBERS
    taken = tl.load(counter + b)
    whole = number(length)
    if HAS_RATE:
        whole *= tl.load(rate).to(tl.float64)
    squares += b * PROGRAMS
    prepare(
        numbers,
        taken,
        whole,
        number(first),
        number(second),
        number(third),
        squares,
        state_second,
        state_most,
        PROGRAMS,
        RULE,
        HAS_MOST,
    )
    tl.debug_barrier()
    if OF == NOISE:
        draw(rows + b * K * PARTS * n, taken, n, K, K_PADDED, PARTS, BLOCK)
    elif OF == ROWS:
        mix_rows(
            g,
            state,
            state_second,
            state_most,
            numbers,
            raw + b * PARTS * width,
            rows + b * PARTS * width,
            taken,
            number(anywhere),
            n,
            width,
            count,
            RULE,
            HAS_MOST,
            PARTS,
            BLOCK,
        )
    else:
        mix_columns(
            g,
            state,
            state_second,
            state_most,
            numbers,
            raw + b * K * PARTS * n,
            rows + b * K * PARTS * n,
            taken,
            number(anywhere),
            n,
            width,
            count,
            K,
            K_PADDED,
            COUNT_PADDED,
            BY_DOT,
            RULE,
            HAS_MOST,
            PARTS,
            BLOCK,
        )
