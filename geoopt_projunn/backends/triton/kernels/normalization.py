"""The normalizations of geoopt_projunn.normalization, of one core in one program."""

import triton
import triton.language as tl

from .... import normalization
from .small import divided, norm_of, skew, times

AS_LONG: tl.constexpr = tl.constexpr(0)
ANGLE: tl.constexpr = tl.constexpr(1)
SPECTRAL: tl.constexpr = tl.constexpr(2)

SQUARINGS: tl.constexpr = tl.constexpr(normalization.SQUARINGS)
FEW_SQUARINGS: tl.constexpr = tl.constexpr(normalization.FEW_SQUARINGS)
NEWTON_SCHULZ_STEPS: tl.constexpr = tl.constexpr(normalization.NEWTON_SCHULZ_STEPS)
PI: tl.constexpr = tl.constexpr(3.141592653589793)


@triton.jit
def length_of(a, PARTS: tl.constexpr):
    """Return the Frobenius norm of entries of any size, whose squares may leave float64."""
    largest = tl.max(tl.max(tl.abs(a), 1), 0)
    return largest * norm_of(divided(a, largest), PARTS)


@triton.jit
def unit(s, PARTS: tl.constexpr):
    """Return a matrix at Frobenius norm 1, or zero."""
    s = divided(s, tl.max(tl.max(tl.abs(s), 1), 0))
    return divided(s, norm_of(s, PARTS))


@triton.jit
def spectral_bound(s, COUNT: tl.constexpr, PARTS: tl.constexpr):
    """Return an upper bound of the spectral norm, by squaring COUNT times."""
    bound = norm_of(s, PARTS)
    power = divided(s, bound)
    share = tl.full((), 1.0, tl.float64)
    for _ in range(COUNT):
        share *= 0.5
        power = times(power, power)
        norm = norm_of(power, PARTS)
        is_zero = norm == 0.0
        root = tl.exp2(tl.log2(tl.where(is_zero, 1.0, norm)) * share)
        bound *= tl.where(is_zero, 0.0, root)
        power = divided(power, norm)
    return bound


@triton.jit
def limited(length, longest):
    """Return a length with which a plane of angle ``longest`` does not turn further than pi."""
    turned = tl.abs(length * longest)
    return tl.where(turned > PI, length / turned * PI, length)


@triton.jit
def normalized(
    core,
    length,
    NORMALIZE: tl.constexpr,
    IS_LIMITED: tl.constexpr,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Return the generator of a step of ``length`` radians; no plane turns further than pi."""
    s = unit(skew(core), PARTS)
    if NORMALIZE == ANGLE:
        # Of the 2k angles; COUNT is that times PARTS.
        s *= tl.sqrt(tl.full((), COUNT // PARTS, tl.float64))
        if IS_LIMITED:
            length = limited(length, spectral_bound(s, SQUARINGS, PARTS))
    else:
        s = divided(s, spectral_bound(s, FEW_SQUARINGS, PARTS))
        for _ in range(NEWTON_SCHULZ_STEPS):
            s = 1.5 * s + 0.5 * times(s, times(s, s))
        if IS_LIMITED:
            length = limited(length, 1.0)
    return length * s
