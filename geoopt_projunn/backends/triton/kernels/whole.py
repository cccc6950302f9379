"""A whole step of a small matrix in one program: the kernels of a large one, one after the other.

What one writes the next reads from the same multiprocessor.
"""

import triton
import triton.language as tl

from .alone import STAGES, orthonormalize, pass_over, turn
from .cores import TANGENT, collect_kernel, core_kernel
from .directions import GRADIENT
from .mixing import COLUMNS, NOISE, ROWS, mix_kernel
from .testing import column_sums_kernel, row_sums_kernel


@triton.jit(do_not_specialize=["length", "first", "second", "third", "anywhere", "floor"])
def whole_kernel(
    x,
    g,
    state,
    state_second,
    state_most,
    counter,
    skipped,
    rate,
    mixed,
    vectors,
    of_rows,
    narrow,
    basis,
    sums,
    along,
    back,
    last,
    own,
    own_sums,
    errors,
    error_sums,
    numbers,
    lengths,
    squares,
    q,
    rows,
    gram,
    products,
    largest,
    seen,
    by,
    again,
    delta,
    norms,
    finite,
    tickets,
    bad,
    length,
    first,
    second,
    third,
    anywhere,
    floor,
    n,
    p,
    width,
    few,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    K_BY_DOT: tl.constexpr,
    FEW_PADDED: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    BOTH_PADDED: tl.constexpr,
    BOTH_BY_DOT: tl.constexpr,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    SWEEP_BY_DOT: tl.constexpr,
    SKETCH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    IS_LIMITED: tl.constexpr,
    RETRACTION: tl.constexpr,
    HAS_RATE: tl.constexpr,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_OF_MIX: tl.constexpr,
    BLOCK_OF_BASIS: tl.constexpr,
    BLOCK_OF_CORE: tl.constexpr,
    BM: tl.constexpr,
    BM_OF_BOTH: tl.constexpr,
    BN: tl.constexpr,
    N_PADDED: tl.constexpr,
):
    """Take a step."""
    IS_TANGENT: tl.constexpr = SKETCH == TANGENT
    OF_TEST: tl.constexpr = (ROWS if K == 1 else COLUMNS) if IS_TANGENT else NOISE
    RULES: tl.constexpr = (RULE, HAS_MOST)
    PLAIN: tl.constexpr = (GRADIENT, False)
    PADS: tl.constexpr = (PADDED, BY_DOT)
    TILE: tl.constexpr = (PARTS, BM, BN)
    COUNTS: tl.constexpr = (COUNT, PADDED, PARTS, BLOCK_OF_BASIS)
    TILE_OF_BOTH: tl.constexpr = (PARTS, BM_OF_BOTH, BN)
    IS_CHECKED: tl.constexpr = True
    d, point = (g, state, state_second, state_most), (x, x, x, x)
    found = (numbers, bad, squares, n, width)
    work, bases = (rows, gram, largest, seen, by), (narrow, q, again)
    mix_kernel(
        g,
        state,
        state_second,
        state_most,
        counter,
        rate,
        numbers,
        tickets,
        mixed,
        lengths,
        length,
        first,
        second,
        third,
        tl.maximum(n, width),
        n,
        width,
        few,
        K,
        K_PADDED,
        FEW_PADDED,
        K_BY_DOT,
        OF_TEST,
        HAS_RATE,
        RULE,
        HAS_MOST,
        PARTS,
        BLOCK_OF_MIX,
    )
    tl.debug_barrier()
    if IS_TANGENT:
        if K == 1:
            test, right = of_rows, vectors
            row_sums_kernel(
                x,
                mixed,
                lengths,
                counter,
                vectors,
                of_rows,
                anywhere,
                1,
                n,
                width,
                few,
                n,
                PARTS,
                BM,
                BN,
                STAGES,
            )
        else:
            test, right = vectors, sums
            column_sums_kernel(
                x,
                mixed,
                lengths,
                counter,
                vectors,
                sums,
                anywhere,
                1,
                n,
                width,
                few,
                n,
                K,
                PADDED,
                BY_DOT,
                PARTS,
                BM,
                BN,
                STAGES,
            )
        # Twice the generator, of test vectors and then of their basis.
        pass_over(d, found, test, right, along, back, COUNT, COUNT, PADS, RULES, TILE, IS_CHECKED)
        pass_over(point, found, x, along, x, last, 0, COUNT, PADS, PLAIN, TILE)
        orthonormalize((back, last), d, found, tickets, work, bases, n, COUNTS, False, RULES)
        pass_over(point, found, narrow, x, sums, x, COUNT, 0, PADS, PLAIN, TILE)
        pass_over(d, found, narrow, sums, along, back, COUNT, COUNT, PADS, RULES, TILE)
        pass_over(point, found, x, along, x, last, 0, COUNT, PADS, PLAIN, TILE)
    else:
        pass_over(d, found, mixed, x, sums, x, COUNT, 0, PADS, RULES, TILE, IS_CHECKED)
        orthonormalize((sums, sums), d, found, tickets, work, bases, p, COUNTS, True, RULES)
        pass_over(d, found, x, narrow, x, back, 0, COUNT, PADS, RULES, TILE)
        pass_over(point, found, x, narrow, x, last, 0, COUNT, PADS, PLAIN, TILE)
    tl.debug_barrier()
    collect_kernel(
        x,
        q,
        back,
        last,
        counter,
        numbers,
        tickets,
        again,
        rows,
        gram,
        largest,
        by,
        own,
        n,
        1,
        n,
        width,
        COUNT,
        PADDED,
        BOTH_PADDED,
        SKETCH,
        SWEEP,
        SWEEP_PADDED,
        PARTS,
        BLOCK_OF_CORE,
    )
    tl.debug_barrier()
    core_kernel(
        bad,
        numbers,
        tickets,
        rows,
        by,
        gram,
        products,
        basis,
        delta,
        finite,
        floor,
        n,
        1,
        n,
        COUNT,
        BOTH_PADDED,
        SKETCH,
        NORMALIZE,
        IS_LIMITED,
        RETRACTION,
        RULE,
        PARTS,
        BLOCK_OF_CORE,
    )
    turn(
        x,
        d,
        found,
        finite,
        basis,
        delta,
        own,
        sums,
        own_sums,
        (errors, norms, error_sums),
        (counter, skipped),
        2 * COUNT,
        BOTH_PADDED,
        BOTH_BY_DOT,
        SWEEP,
        SWEEP_PADDED,
        SWEEP_BY_DOT,
        RULES,
        TILE_OF_BOTH,
        N_PADDED,
    )
