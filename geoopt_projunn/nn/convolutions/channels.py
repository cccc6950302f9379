r"""Blocks of pixels as channels: what a stride does before an orthogonal convolution."""

import torch


def pixels_to_channels(x: torch.Tensor, stride: int) -> torch.Tensor:
    r"""Move each block of pixels into the channels: a permutation of the entries.

    For x (b, c, \*size) the result is (b, c * stride**d, \*size / stride), d the number of axes,
    ordered as by :func:`torch.nn.functional.pixel_unshuffle`.
    """
    if stride == 1:
        return x
    dims = x.dim() - 2
    blocks = x
    for axis in reversed(range(2, x.dim())):
        blocks = blocks.unflatten(axis, (-1, stride))
    outer, inner = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return blocks.permute(0, 1, *inner, *outer).flatten(1, 1 + dims)


def channels_to_pixels(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Undo :func:`pixels_to_channels`."""
    if stride == 1:
        return x
    dims = x.dim() - 2
    blocks = x.unflatten(1, (-1, *(stride,) * dims))
    pixels = blocks.permute(0, 1, *(a for d in range(dims) for a in (2 + dims + d, 2 + d)))
    for axis in range(2, 2 + dims):
        pixels = pixels.flatten(axis, axis + 1)
    return pixels
