"""The retractions of geoopt_projunn.retractions, of one core in one program."""

import triton
import triton.language as tl

from .... import retractions
from .small import eye, norm_of, skew, solve, square_of_norm, times

EXPONENTIAL: tl.constexpr = tl.constexpr(0)
CAYLEY: tl.constexpr = tl.constexpr(1)
POLAR: tl.constexpr = tl.constexpr(2)

TAYLOR_DEGREE: tl.constexpr = tl.constexpr(retractions.TAYLOR_DEGREE)
# Up to this norm what a series of that degree leaves out is rounding.
SHORT: tl.constexpr = tl.constexpr(2.0**-5)
LONGEST_EXPONENTIAL: tl.constexpr = tl.constexpr(retractions.LONGEST_EXPONENTIAL)
MOST_SQUARINGS: tl.constexpr = tl.constexpr(13)
LONGEST_CAYLEY: tl.constexpr = tl.constexpr(retractions.LONGEST_CAYLEY)
NEWTON_ITERATIONS: tl.constexpr = tl.constexpr(retractions.NEWTON_ITERATIONS)
EPSILON: tl.constexpr = tl.constexpr(2.0**-52)


@triton.jit
def shortened(core, longest, PARTS: tl.constexpr):
    """Return the skew part, no longer than ``longest``."""
    s = skew(core)
    length = norm_of(s, PARTS)
    return s * tl.where(length > longest, 1.0 / length * longest, 1.0)


@triton.jit
def exponential(core, PARTS: tl.constexpr):
    """Return exp(S) - I, squared as often as the length of S asks for."""
    a = shortened(core, LONGEST_EXPONENTIAL, PARTS)
    length = norm_of(a, PARTS)
    # What is not a number asks for none, and shows in the result.
    squarings = tl.where(length > SHORT, tl.ceil(tl.log2(length / SHORT)), 0.0)
    squarings = tl.minimum(squarings, MOST_SQUARINGS)
    a *= tl.exp2(-squarings)
    delta = a
    for i in tl.static_range(TAYLOR_DEGREE - 1):
        delta = a + times(a, delta) * (1.0 / (TAYLOR_DEGREE - i))
    for _ in range(squarings.to(tl.int32)):
        delta = 2.0 * delta + times(delta, delta)
    return delta


@triton.jit
def cayley(core, COUNT: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr):
    """Return the inverse of I - S/2 times S, polished."""
    s = shortened(core, LONGEST_CAYLEY, PARTS)
    delta = solve(eye(COUNT, PADDED) - 0.5 * s, s, COUNT, PADDED)
    adjoint = tl.trans(delta)
    error = delta + adjoint + times(adjoint, delta)
    return delta - 0.5 * (error + times(delta, error))


@triton.jit
def polar(core, COUNT: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr):
    """Return P - I, P the orthogonal matrix nearest to I + K, by scaled Newton iterations."""
    one = eye(COUNT, PADDED)
    delta = core + one * ((1.0 + norm_of(core, PARTS)) * EPSILON)
    for _ in range(NEWTON_ITERATIONS):
        y = one + delta
        other = solve(tl.trans(y), -tl.trans(delta), COUNT, PADDED)
        gamma = tl.sqrt(tl.sqrt(square_of_norm(one + other) / square_of_norm(y)))
        delta = 0.5 * (
            delta * gamma + other / gamma + one * ((gamma - 1.0) * (gamma - 1.0) / gamma)
        )
    return delta


@triton.jit
def retracted(
    core, RETRACTION: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr
):
    """Return the rotation P of a core, as P - I."""
    if RETRACTION == EXPONENTIAL:
        return exponential(core, PARTS)
    elif RETRACTION == CAYLEY:
        return cayley(core, COUNT, PADDED, PARTS)
    else:
        return polar(core, COUNT, PADDED, PARTS)
