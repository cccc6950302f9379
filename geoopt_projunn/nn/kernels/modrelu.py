r"""The modReLU of a recurrence, in one launch each way.

The formulas, and what becomes of values that are not finite, are those of
:mod:`~geoopt_projunn.nn.pointwise`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends.triton.repeated import Repeated
from ..activation import least_divisor
from . import interleaved

_BLOCK = 256
# The kernels count entries in 32 bits, and complex ones have two parts.
_MOST_ENTRIES = 2**30


def forward(z: Tensor, offset: Tensor) -> Repeated:
    """Return what replaces arguments (rows, n) like z by their modReLU, in a loop.

    Rows may be apart in memory, here and below.
    """
    assert offset.is_contiguous()
    if z.is_complex():
        return Repeated(
            _forward_complex, _share, (offset,), BLOCK=_BLOCK, TINY=least_divisor(z.dtype)
        )
    return Repeated(_forward_real, _share, (offset,), BLOCK=_BLOCK)


def backward(grad: Tensor, h: Tensor, offset: Tensor | None, along: Tensor | None) -> Repeated:
    """Return what replaces gradients of h like ``grad``, given h, by those of z, in a loop.

    The gradient of the offset is added to ``along``, row by row, if there is such a tensor. Real
    ones need no offset.
    """
    assert along is None or along.is_contiguous()
    into, options = h if along is None else along, {"BLOCK": _BLOCK, "WATCH": along is not None}
    if not grad.is_complex():
        return Repeated(_backward_real, _share, (into,), **options)
    assert offset is not None
    assert offset.is_contiguous()
    ends = {"TINY": least_divisor(grad.dtype), "EPS": torch.finfo(grad.dtype).eps}
    return Repeated(_backward_complex, _share, (offset, into), **options, **ends)


def _share(*apart: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return how many programs there are, the strides of rows, and the sizes."""
    rows, n = apart[0].shape
    strides = [t.stride(0) for t in apart]
    if rows * max(strides) > _MOST_ENTRIES:
        raise ValueError(
            f"`input` must be a batch of which one time step has at most {_MOST_ENTRIES} entries "
            f"between its first row and its last, got {rows} rows that are {max(strides)} entries "
            "apart; split the batch."
        )
    assert n == 1 or all(t.stride(1) == 1 for t in apart)
    return triton.cdiv(rows * n, _BLOCK), (*strides, rows * n, n)


@triton.jit
def _forward_real(z, offset, stride, count, n, BLOCK: tl.constexpr):
    at, column, mask = _place(count, n, BLOCK)
    z += at // n * stride + column
    h = of_real(tl.load(z, mask, 0.0), tl.load(offset + column, mask, 0.0))
    tl.store(z, h, mask)


@triton.jit
def _backward_real(
    grad, h, along, stride, stride_h, count, n, BLOCK: tl.constexpr, WATCH: tl.constexpr
):
    at, column, mask = _place(count, n, BLOCK)
    grad += at // n * stride + column
    own = tl.load(h + at // n * stride_h + column, mask, 0.0)
    of_offset, of_z = back_of_real(tl.load(grad, mask, 0.0), own)
    if WATCH:
        tl.store(along + at, tl.load(along + at, mask, 0.0) + of_offset, mask)
    tl.store(grad, of_z, mask)


@triton.jit
def _forward_complex(z, offset, stride, count, n, BLOCK: tl.constexpr, TINY: tl.constexpr):
    at, column, mask = _place(count, n, BLOCK)
    place = at // n * stride + column
    re, im = interleaved.load(z, place, mask)
    re, im = of_complex(re, im, tl.load(offset + column, mask, 0.0), TINY)
    interleaved.store(z, place, mask, re, im)


@triton.jit
def _backward_complex(
    grad,
    h,
    offset,
    along,
    stride,
    stride_h,
    count,
    n,
    BLOCK: tl.constexpr,
    WATCH: tl.constexpr,
    TINY: tl.constexpr,
    EPS: tl.constexpr,
):
    at, column, mask = _place(count, n, BLOCK)
    h_re, h_im = interleaved.load(h, at // n * stride_h + column, mask)
    b = tl.load(offset + column, mask, 0.0)
    place = at // n * stride + column
    re, im = interleaved.load(grad, place, mask)
    of_offset, re, im = back_of_complex(re, im, h_re, h_im, b, TINY, EPS)
    if WATCH:
        tl.store(along + at, tl.load(along + at, mask, 0.0) + of_offset, mask)
    interleaved.store(grad, place, mask, re, im)


@triton.jit
def of_real(z, b):
    """Return h for an offset b."""
    return _relu(tl.abs(z) + b) * _sign(z)


@triton.jit
def back_of_real(grad, h):
    """Return the gradients of the offset and of z, given that of h."""
    sign = _sign(h)
    along = grad * sign
    return along, along * sign


@triton.jit
def of_complex(re, im, b, TINY: tl.constexpr):
    """Return h for an offset b."""
    modulus = _modulus(re, im)
    scale = _relu(modulus + b) / tl.maximum(modulus, TINY)
    return re * scale, im * scale


@triton.jit
def back_of_complex(grad_re, grad_im, re, im, b, TINY: tl.constexpr, EPS: tl.constexpr):
    """Return the gradients of the offset and of z, given that of h."""
    modulus = _modulus(re, im)
    inverse = 1.0 / tl.maximum(modulus, TINY)
    re, im = re * inverse, im * inverse
    along = re * grad_re + im * grad_im
    across = re * grad_im - im * grad_re
    across *= modulus / tl.maximum(modulus - b, tl.maximum(b * EPS, TINY))
    return along, re * along - im * across, re * across + im * along


@triton.jit
def _place(count, n, BLOCK: tl.constexpr):
    """Return which entries a program takes, their columns, and which of them there are."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return at, at % n, at < count


@triton.jit
def _sign(value):
    return tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))


@triton.jit
def _relu(value):
    return tl.where(value <= 0, 0.0, value)  # not a number stays so


@triton.jit
def _modulus(re, im):
    """Return it without an overflow or underflow of the squares."""
    larger = tl.maximum(tl.abs(re), tl.abs(im))
    scale = tl.where(larger > 0, larger, 1.0)
    re, im = re / scale, im / scale
    return scale * tl.sqrt(re * re + im * im)
