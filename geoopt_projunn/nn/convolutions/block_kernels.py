r"""Small kernels of orthogonal convolutions, made of matrices with orthonormal columns."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...linalg.precision import full_precision

__all__ = ["alternating_axes", "block_kernel"]


def alternating_axes(counts: Sequence[int]) -> list[int]:
    """Return the axis of each factor: every axis in turn, as often as its count says."""
    return [axis for i in range(max(counts)) for axis, count in enumerate(counts) if i < count]


@full_precision
def block_kernel(
    blocks: torch.Tensor, projectors: Sequence[torch.Tensor], axes: Sequence[int], in_channels: int
) -> torch.Tensor:
    r"""Block-convolve a kernel with filters of two taps.

    With R the convolution by ``blocks`` and :math:`z_a` the shift by one pixel along axis a, the
    kernel of

    .. math:: R \, \prod_i (I - N_i N_i^T + z_{a_i} N_i N_i^T) \, E,

    E the embedding of ``in_channels`` among c channels. All rows of all taps go together through
    one product with :math:`N_i` and one with :math:`N_i^T`; no projector is formed.

    Parameters
    ----------
    blocks : torch.Tensor
        (out, c, \*s), s the stride of R
    projectors : sequence of torch.Tensor
        the :math:`N_i`, (c, r)
    axes : sequence of int
        the :math:`a_i`
    in_channels : int
        at most c

    Returns
    -------
    torch.Tensor
        (out, in_channels, \*size), on each axis s and one more for each filter

    Notes
    -----
    A product with N and :math:`N^T` costs :math:`4cr` flops for each row of a tap. From the left
    they are taken with the rows of R, from the right with those of E; what is cheaper is done.
    A 3 × 3 kernel with in = out = c and r = c / 2 costs :math:`26 c^3`.
    """
    taps = blocks.movedim((0, 1), (-2, -1))
    out, c = taps.shape[-2:]
    sizes = _sizes_on_the_way(taps.shape[:-2], axes)
    # From the right there is one more product, with R, which costs as much as one with N and Nᵀ.
    from_the_right = math.prod(taps.shape[:-2]) == 1 and (
        in_channels * sum(sizes) < out * sum(sizes[:-1])
    )
    if from_the_right:
        rows = torch.eye(in_channels, c, dtype=taps.dtype, device=taps.device)
        rows = rows.view(*taps.shape[:-2], in_channels, c)
        steps = reversed(list(zip(projectors, axes, strict=True)))
        kernel = _extended(rows, steps) @ taps.view(out, c).mT
        return kernel.movedim((-1, -2), (0, 1)).contiguous()
    kernel = _extended(taps, zip(projectors, axes, strict=True))[..., :in_channels]
    return kernel.movedim((-2, -1), (0, 1)).contiguous()


def _extended(taps: torch.Tensor, steps: Any) -> torch.Tensor:
    r"""Multiply taps, (\*size, rows, c), by one filter after the other."""
    for n, axis in steps:
        moved = (taps @ n) @ n.mT
        margin = (0, 0) * (taps.dim() - 1 - axis)
        stays = torch.nn.functional.pad(taps - moved, (*margin, 0, 1))
        taps = stays + torch.nn.functional.pad(moved, (*margin, 1, 0))
    return taps


def _sizes_on_the_way(size: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Return the number of taps before each filter and after the last."""
    current = list(size)
    sizes = [math.prod(current)]
    for axis in axes:
        current[axis] += 1
        sizes.append(math.prod(current))
    return sizes
