r"""Circular padding: where a kernel lies on an image that has no border."""

from collections.abc import Sequence
from typing import Any

import torch

_PLAIN = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


def padding_before(kernel_size: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return on each axis how far the first kernel reaches over the image's start.

    Torch takes this for a kernel without a stride ("same"), and with one pads both ends by as
    much; for kernels that do not fit exactly it drops what is too much at the end.
    """
    if stride == 1:
        return tuple((n - 1) // 2 for n in kernel_size)
    return tuple((n - stride + 1) // 2 for n in kernel_size)


def paddings(kernel_size: Sequence[int], stride: int) -> list[tuple[int, int]]:
    """Return what each axis needs before and behind the image so that no pixel is left over."""
    before = padding_before(kernel_size, stride)
    return [(b, n - stride - b) for b, n in zip(before, kernel_size, strict=True)]


def pad(x: torch.Tensor, amounts: Sequence[tuple[int, int]]) -> torch.Tensor:
    r"""Continue a signal (b, c, \*size) periodically, by at most its size on each side."""
    for axis, (before, behind) in enumerate(amounts, 2):
        # No size is looked at: a traced program takes signals of others.
        start = [x.narrow(axis, -before, before)] if before else []
        end = [x.narrow(axis, 0, behind)] if behind else []
        x = torch.cat([*start, x, *end], axis) if start or end else x
    return x


def fold(x: torch.Tensor, amounts: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Add the margins where :func:`pad` took them from: its transpose."""
    for axis, (before, behind) in enumerate(amounts, 2):
        n = x.shape[axis] - before - behind
        middle = x.narrow(axis, before, n)
        if before:
            middle = middle + _zeros_around(x.narrow(axis, 0, before), axis, n - before, 0)
        if behind:
            end = x.narrow(axis, before + n, behind)
            middle = middle + _zeros_around(end, axis, 0, n - behind)
        x = middle
    return x


def _zeros_around(x: torch.Tensor, axis: int, before: int, behind: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1 - axis) + (before, behind))


def circular_convolution(
    kernel: torch.Tensor, stride: int, bias: torch.Tensor | None
) -> torch.nn.Module:
    r"""Return torch's circular convolution that has a copy of a kernel (out, in, \*size)."""
    size = tuple(kernel.shape[2:])
    make: Any = _PLAIN[len(size)]
    conv: torch.nn.Module = make(
        kernel.shape[1],
        kernel.shape[0],
        size,
        stride,
        padding="same" if stride == 1 else padding_before(size, stride),
        bias=bias is not None,
        padding_mode="circular",
        dtype=kernel.dtype,
        device=kernel.device,
    )
    conv.load_state_dict({"weight": kernel} if bias is None else {"weight": kernel, "bias": bias})
    return conv
