"""Kernels of a step as functions of a program that has a matrix for itself.

Called from a kernel they are functions, and there is one program, which has all of their work. Each
function waits until all threads have written what it reads.
"""

import triton
import triton.language as tl

from .bases import basis_kernel, gather_kernel
from .directions import GRADIENT
from .passes import pass_kernel
from .turning import sweep_kernel, turn_kernel

# Nothing is fetched ahead: it is near.
STAGES: tl.constexpr = tl.constexpr(1)
BLOCK_OF_NORMS: tl.constexpr = tl.constexpr(16)


@triton.jit
def pass_over(
    source,
    found,
    left,
    right,
    left_sums,
    right_sums,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PADS: tl.constexpr,
    RULE: tl.constexpr,
    TILE: tl.constexpr,
    IS_CHECKED: tl.constexpr = False,
):
    """Multiply LEFT and RIGHT rows with a matrix.

    ``source`` are a matrix and the three tensors of its rule; ``found`` the numbers of the step,
    flags, squares, n and the width; PADS is to how many rows these are padded, and whether tl.dot
    multiplies them; RULE the rule, and whether it has a largest moment; TILE the parts of an entry,
    rows and columns.
    """
    tl.debug_barrier()
    pass_kernel(
        source[0],
        source[1],
        source[2],
        source[3],
        found[0],
        left,
        left,
        right,
        left_sums,
        left_sums,
        right_sums,
        found[1],
        found[2],
        found[3],
        found[4],
        found[3],
        1,
        LEFT,
        0,
        RIGHT,
        PADS[0] if LEFT > 0 else 1,
        1,
        PADS[0] if RIGHT > 0 else 1,
        PADS[1] if LEFT > 0 else False,
        False,
        PADS[1] if RIGHT > 0 else False,
        IS_CHECKED,
        RULE[0],
        RULE[1],
        TILE[0],
        TILE[1],
        TILE[2],
        STAGES,
    )


@triton.jit
def orthonormalize(
    sums,
    source,
    found,
    tickets,
    work,
    basis,
    length,
    COUNTS: tl.constexpr,
    OF_COLUMN_SUMS: tl.constexpr,
    RULE: tl.constexpr,
):
    """Write a basis, and what mends it, given rows of some length as the difference of two sums.

    COUNTS are the number of rows, padded too, the parts of an entry, and positions at once.
    """
    tl.debug_barrier()
    gather_kernel(
        sums[0],
        sums[1],
        found[0],
        tickets,
        found[2],
        source[2],
        source[3],
        work[0],
        work[1],
        work[2],
        work[3],
        work[4],
        length,
        1,
        1,
        length,
        found[4],
        COUNTS[0],
        COUNTS[1],
        OF_COLUMN_SUMS,
        RULE[0],
        RULE[1],
        COUNTS[2],
        COUNTS[3],
    )
    tl.debug_barrier()
    basis_kernel(
        tickets,
        work[0],
        work[4],
        work[1],
        basis[0],
        basis[1],
        basis[2],
        length,
        length,
        found[4],
        COUNTS[0],
        COUNTS[1],
        OF_COLUMN_SUMS,
        COUNTS[2],
        COUNTS[3],
    )


@triton.jit
def turn(
    x,
    source,
    found,
    finite,
    basis,
    delta,
    own,
    sums,
    own_sums,
    of_errors,
    counters,
    BOTH: tl.constexpr,
    PADDED: tl.constexpr,
    BY_DOT: tl.constexpr,
    SWEEP: tl.constexpr,
    SWEEP_PADDED: tl.constexpr,
    SWEEP_BY_DOT: tl.constexpr,
    RULE: tl.constexpr,
    TILE: tl.constexpr,
    N_PADDED: tl.constexpr,
):
    """Turn a matrix, advance the state of its rule, and sweep."""
    n, width = found[3], found[4]
    tl.debug_barrier()
    pass_kernel(
        x,
        x,
        x,
        x,
        found[0],
        basis,
        own,
        x,
        sums,
        own_sums,
        sums,
        found[1],
        found[2],
        n,
        width,
        n,
        1,
        BOTH,
        SWEEP,
        0,
        PADDED,
        SWEEP_PADDED,
        1,
        BY_DOT,
        SWEEP_BY_DOT,
        False,
        False,
        GRADIENT,
        False,
        TILE[0],
        TILE[1],
        TILE[2],
        STAGES,
    )
    tl.debug_barrier()
    turn_kernel(
        x,
        source[0],
        source[1],
        source[2],
        source[3],
        found[0],
        finite,
        basis,
        delta,
        sums,
        own_sums,
        of_errors[0],
        of_errors[1],
        of_errors[2],
        counters[0],
        counters[1],
        n,
        width,
        n,
        1,
        BOTH,
        PADDED,
        BY_DOT,
        SWEEP,
        SWEEP_PADDED,
        SWEEP_BY_DOT,
        RULE[0],
        RULE[1],
        TILE[0],
        TILE[1],
        TILE[2],
        STAGES,
    )
    if SWEEP > 0:
        tl.debug_barrier()
        sweep_kernel(
            x,
            found[0],
            finite,
            of_errors[0],
            of_errors[1],
            of_errors[2],
            n,
            width,
            1,
            SWEEP,
            SWEEP_PADDED,
            SWEEP_BY_DOT,
            TILE[0],
            N_PADDED,
            BLOCK_OF_NORMS,
        )
