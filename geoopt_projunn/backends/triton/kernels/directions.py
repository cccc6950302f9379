"""The direction of a rule, made where the gradient is read: nothing of its size is created."""

import triton
import triton.language as tl

GRADIENT: tl.constexpr = tl.constexpr(0)
MOMENTUM: tl.constexpr = tl.constexpr(1)
NESTEROV: tl.constexpr = tl.constexpr(2)
ADAM: tl.constexpr = tl.constexpr(3)
ADAM_SCALAR: tl.constexpr = tl.constexpr(4)

# What is kept of each matrix, in float64, while a step is taken.
LENGTH: tl.constexpr = tl.constexpr(0)
# Momentum: the factor and the share of the gradient. Adam: the shares of the new moments.
FIRST: tl.constexpr = tl.constexpr(1)
SECOND: tl.constexpr = tl.constexpr(2)
# Of Adam: the direction is m / (scale sqrt(v) + least).
SCALE: tl.constexpr = tl.constexpr(3)
LEAST: tl.constexpr = tl.constexpr(4)
# Of Adam with one second moment for each matrix: its next value and the largest.
NEXT: tl.constexpr = tl.constexpr(5)
MOST: tl.constexpr = tl.constexpr(6)
# The first column to be swept.
COLUMN: tl.constexpr = tl.constexpr(7)
# The length of what a generator is the difference of.
SEEN: tl.constexpr = tl.constexpr(8)
# What divides all of a direction of Adam with one second moment.
DIVISOR: tl.constexpr = tl.constexpr(9)
NUMBERS: tl.constexpr = tl.constexpr(10)


@triton.jit
def number(bits):
    """Return the float64 that has these bits: numbers of Python would arrive in float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def averaged(old, fresh, share):
    """Return what torch.lerp does: exact where the share is 0, and where it is 1."""
    change = fresh - old
    return tl.where(share < 0.5, old + share * change, fresh - (1.0 - share) * change)


@triton.jit
def direction(
    g,
    state,
    second,
    most,
    numbers,
    offset,
    mask,
    RULE: tl.constexpr,
    HAS_MOST: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Return the direction at some entries, and the next values of the three buffers there."""
    grad = tl.load(g + offset, mask=mask, other=0.0)
    kind = grad.dtype
    if RULE == GRADIENT:
        return grad, grad, grad, grad
    else:
        first = tl.load(numbers + FIRST).to(kind)
        share = tl.load(numbers + SECOND).to(kind)
        before = tl.load(state + offset, mask=mask, other=0.0)
        if RULE == MOMENTUM or RULE == NESTEROV:
            after = before * first + grad * share
            if RULE == NESTEROV:
                return grad + first * after, after, after, after
            else:
                return after, after, after, after
        else:
            scale = tl.load(numbers + SCALE).to(kind)
            least = tl.load(numbers + LEAST).to(kind)
            after = averaged(before, grad, first)
            if RULE == ADAM:
                square = grad * grad
                if PARTS == 2:
                    other = tl.load(g + (offset ^ 1), mask=mask, other=0.0)
                    square += other * other
                moment = averaged(
                    tl.load(second + offset // PARTS, mask=mask, other=0.0), square, share
                )
                largest = moment
                if HAS_MOST:
                    largest = tl.maximum(
                        moment, tl.load(most + offset // PARTS, mask=mask, other=0.0)
                    )
                divisor = scale * tl.sqrt(largest) + least
                # Where nothing is, 0 / 0 would be.
                return after / tl.where(mask, divisor, 1.0), after, moment, largest
            else:
                # What divides all of it divides the core, see `prepare_scalar`.
                return after, after, after, after


@triton.jit
def is_bad(value, mask):
    """Return where a value is not finite."""
    return mask & ((value - value) != 0.0)


@triton.jit
def prepare(numbers, taken, length, first, second, third, RULE: tl.constexpr):
    """Write the numbers of a matrix that has taken some steps."""
    tl.store(numbers + LENGTH, length)
    if RULE == MOMENTUM or RULE == NESTEROV:
        tl.store(numbers + FIRST, first)
        # The first step takes the gradient undamped.
        tl.store(numbers + SECOND, tl.where(taken > 0, 1.0 - second, 1.0))
    if RULE == ADAM or RULE == ADAM_SCALAR:
        step = (taken + 1).to(tl.float64)
        correction1 = 1.0 - power(first, step)
        correction2 = 1.0 - power(second, step)
        tl.store(numbers + FIRST, 1.0 - first)
        tl.store(numbers + SECOND, 1.0 - second)
        tl.store(numbers + SCALE, correction1 / tl.sqrt(correction2))
        tl.store(numbers + LEAST, third * correction1)


@triton.jit
def prepare_scalar(
    numbers,
    squares,
    programs,
    state_second,
    state_most,
    HAS_MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the next second moment of a matrix, given sums of squares, and what it divides by.

    The direction is divided by one number: the basis of a sketch does not depend on it, and the
    core is divided instead.
    """
    square = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        square += tl.load(squares + at, mask=at < programs, other=0.0)
    before = tl.load(state_second)
    kind = before.dtype
    moment = averaged(before, tl.sum(square, 0).to(kind), tl.load(numbers + SECOND).to(kind))
    largest = moment
    if HAS_MOST:
        largest = tl.maximum(moment, tl.load(state_most))
    tl.store(numbers + NEXT, moment.to(tl.float64))
    tl.store(numbers + MOST, largest.to(tl.float64))
    divisor = tl.load(numbers + SCALE) * tl.sqrt(largest.to(tl.float64)) + tl.load(numbers + LEAST)
    tl.store(numbers + DIVISOR, divisor)


@triton.jit
def power(base, exponent):
    """Return base ** exponent for 0 <= base < 1."""
    is_zero = base == 0.0
    value = tl.exp2(exponent * tl.log2(tl.where(is_zero, 1.0, base)))
    return tl.where(is_zero, 0.0, value)
