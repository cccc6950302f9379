r"""The modReLU of a recurrence, in one launch each way.

The formulas, and what becomes of values that are not finite, are those of
:mod:`~geoopt_projunn.nn.pointwise`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interleaved
from .launching import launch

_BLOCK = 256


def forward_(z: Tensor, offset: Tensor) -> None:
    """Replace z, (rows, n), by its modReLU."""
    if z.is_complex():
        _launch(_forward_complex, z, offset, TINY=_tiny(z))
    else:
        _launch(_forward_real, z, offset)


def backward_(grad: Tensor, h: Tensor, offset: Tensor | None, along: Tensor | None) -> None:
    """Replace the gradient of h, (rows, n), by that of z; real ones need no offset.

    The gradient of the offset is added to ``along``, row by row, if there is such a tensor.
    """
    watch = along is not None
    into = along if along is not None else h
    if grad.is_complex():
        assert offset is not None
        options = {"TINY": _tiny(grad), "EPS": torch.finfo(grad.dtype).eps}
        _launch(_backward_complex, grad, h, offset, into, WATCH=watch, **options)
    else:
        _launch(_backward_real, grad, h, into, WATCH=watch)


def _launch(kernel: Any, *tensors: Tensor, **constants: Any) -> None:
    first = tensors[0]
    # The kernels count entries in 32 bits.
    assert first.numel() <= 2**30
    assert all(t.is_contiguous() for t in tensors)
    entries = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    blocks = triton.cdiv(first.numel(), _BLOCK)
    launch(kernel, blocks, *entries, first.numel(), first.shape[-1], BLOCK=_BLOCK, **constants)


def _tiny(z: Tensor) -> float:
    return torch.finfo(z.dtype).tiny ** 0.5


@triton.jit
def _forward_real(z, offset, count, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = tl.load(z + at, mask, 0.0)
    sign = _sign(value)
    shifted = tl.abs(value) + tl.load(offset + at % n, mask, 0.0)
    tl.store(z + at, _relu(shifted) * sign, mask)


@triton.jit
def _backward_real(grad, h, along, count, n, BLOCK: tl.constexpr, WATCH: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    sign = _sign(tl.load(h + at, mask, 0.0))
    turned = tl.load(grad + at, mask, 0.0) * sign
    if WATCH:
        tl.store(along + at, tl.load(along + at, mask, 0.0) + turned, mask)
    tl.store(grad + at, turned * sign, mask)


@triton.jit
def _forward_complex(z, offset, count, n, BLOCK: tl.constexpr, TINY: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    re, im = interleaved.load(z, at, mask)
    modulus = _modulus(re, im)
    shifted = _relu(modulus + tl.load(offset + at % n, mask, 0.0))
    scale = shifted / tl.maximum(modulus, TINY)
    interleaved.store(z, at, mask, re * scale, im * scale)


@triton.jit
def _backward_complex(
    grad,
    h,
    offset,
    along,
    count,
    n,
    BLOCK: tl.constexpr,
    WATCH: tl.constexpr,
    TINY: tl.constexpr,
    EPS: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    re, im = interleaved.load(h, at, mask)
    b = tl.load(offset + at % n, mask, 0.0)
    modulus = _modulus(re, im)
    inverse = 1.0 / tl.maximum(modulus, TINY)
    re, im = re * inverse, im * inverse
    of_re, of_im = interleaved.load(grad, at, mask)
    turned_re = re * of_re + im * of_im
    turned_im = re * of_im - im * of_re
    if WATCH:
        tl.store(along + at, tl.load(along + at, mask, 0.0) + turned_re, mask)
    turned_im *= modulus / tl.maximum(modulus - b, tl.maximum(b * EPS, TINY))
    interleaved.store(
        grad, at, mask, re * turned_re - im * turned_im, re * turned_im + im * turned_re
    )


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
