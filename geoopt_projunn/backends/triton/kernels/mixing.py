"""The test vectors of a sketch: hashed combinations of a few columns or rows of a direction.

Programs share out the positions of these vectors. What only all of them know, the length of each,
is for :mod:`.vectors`, which reads what is *mixed* here.
"""

import triton
import triton.language as tl

from ....linalg import hashing
from .arrivals import TICKETS
from .directions import ADAM_SCALAR, NUMBERS, direction, number, prepare
from .layout import row_sums
from .overlap import begin

MIX_1: tl.constexpr = tl.constexpr(hashing.MIX_1)
MIX_2: tl.constexpr = tl.constexpr(hashing.MIX_2)
MASK: tl.constexpr = tl.constexpr(hashing.MASK)
SPACING: tl.constexpr = tl.constexpr(2.0**-31)
OFFSET: tl.constexpr = tl.constexpr(2.0**-32 - 1.0)

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
    start,
    end,
    n,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write K rows of random numbers."""
    which = tl.arange(0, K_PADDED)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = (which < K)[:, None] & (at < end)[None, :]
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
    mixed,
    sums,
    taken,
    start,
    end,
    n,
    width,
    count,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one vector of length p, both parts in turn, made of the next rows of the direction."""
    kind = mixed.dtype.element_ty
    total = count + width // PARTS
    square = tl.zeros((BLOCK,), tl.float64)
    toward = tl.zeros((BLOCK,), tl.float64)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        value = tl.zeros((BLOCK,), kind)
        for i in range(count):
            offset = in_turn(taken, count, i, n) * width + at
            d, _, _, _ = direction(
                g, state, state_second, state_most, numbers, offset, inside, RULE, HAS_MOST, PARTS
            )
            value += uniform(taken, total, i + 0 * at).to(kind) * d
        wide = value.to(tl.float64)
        square += wide * wide
        # Imaginary parts meet the next entry of the noise.
        entry = (at // PARTS + at % PARTS) % (width // PARTS)
        toward += tl.where(inside, wide * uniform(taken, total, count + entry), 0.0)
        tl.store(mixed + at, value, mask=inside)
    tl.store(sums, tl.sum(square, 0))
    tl.store(sums + 1, tl.sum(toward, 0))


@triton.jit
def mix_columns(
    g,
    state,
    state_second,
    state_most,
    numbers,
    mixed,
    sums,
    taken,
    start,
    end,
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
    kind = mixed.dtype.element_ty
    which, index = tl.arange(0, K_PADDED), tl.arange(0, COUNT_PADDED)
    total = count + n
    turn = in_turn(taken, count, index, width // PARTS)
    by = uniform(taken, K * total, which[:, None] * total + index[None, :]).to(kind)
    by = tl.where((which < K)[:, None] & (index < count)[None, :], by, 0.0)
    square = tl.zeros((K_PADDED,), tl.float64)
    toward = tl.zeros((K_PADDED,), tl.float64)
    # The next block is not fetched ahead: what Adam reads of two would not fit beside each other.
    for first in tl.range(start, end, BLOCK, num_stages=1):
        at = first + tl.arange(0, BLOCK)
        mask = (which < K)[:, None] & (at < end)[None, :]
        inside = (at < end)[:, None] & (index < count)[None, :]
        for part in tl.static_range(PARTS):
            offset = at.to(tl.int64)[:, None] * width + turn[None, :] * PARTS + part
            d, _, _, _ = direction(
                g, state, state_second, state_most, numbers, offset, inside, RULE, HAS_MOST, PARTS
            )
            value = row_sums(by, d, BY_DOT)
            if part == 1:
                value = -value
            wide = value.to(tl.float64)
            square += tl.sum(wide * wide, 1)
            entry = which[:, None] * total + count + (at[None, :] + part) % n
            toward += tl.sum(wide * uniform(taken, K * total, entry), 1)
            tl.store(mixed + (PARTS * which + part)[:, None] * n + at[None, :], value, mask=mask)
    tl.store(sums + 2 * which, square, mask=which < K)
    tl.store(sums + 2 * which + 1, toward, mask=which < K)


@triton.jit(do_not_specialize=["length", "first", "second", "third"])
def mix_kernel(
    g,
    state,
    state_second,
    state_most,
    counter,
    rate,
    numbers,
    tickets,
    mixed,
    sums,
    length,
    first,
    second,
    third,
    each,
    n,
    width,
    count,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    COUNT_PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    OF: tl.constexpr,
    HAS_RATE: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Prepare the numbers of a step, and mix ``each`` entries of its test vectors.

    ``sums``, (b, programs, K, 2), are the squares of what is mixed, and its products with the noise
    that it is to get, added up.
    ``length``, ``first``, ``second`` and ``third`` are the bits of float64; with HAS_RATE the
    length is that of a unit of the learning rate.
    """
    begin(OVERLAPS)
    b, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g += b * n * width
    state += b * n * width
    of_second = b if RULE == ADAM_SCALAR else b * n * width // PARTS
    state_second += of_second
    state_most += of_second
    numbers += b * NUMBERS
    sums += (b * tl.num_programs(1) + program) * K * 2
    taken = tl.load(counter + b)
    whole = number(length)
    if HAS_RATE:
        whole *= tl.load(rate).to(tl.float64)
    # Every program writes the same, for itself.
    prepare(numbers, taken, whole, number(first), number(second), number(third), RULE)
    if program == 0:
        index = tl.arange(0, TICKETS)
        tl.store(tickets + b * TICKETS + index, tl.zeros((TICKETS,), tl.int32))
    tl.debug_barrier()
    start = program * each
    if OF == NOISE:
        end = tl.minimum(n, start + each)
        draw(mixed + b * K * PARTS * n, taken, start, end, n, K, K_PADDED, PARTS, BLOCK)
    elif OF == ROWS:
        mix_rows(
            g,
            state,
            state_second,
            state_most,
            numbers,
            mixed + b * PARTS * width,
            sums,
            taken,
            start,
            tl.minimum(width, start + each),
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
            mixed + b * K * PARTS * n,
            sums,
            taken,
            start,
            tl.minimum(n, start + each),
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
