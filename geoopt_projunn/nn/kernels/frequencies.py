r"""Between the half spectrum of a signal and its coordinates, in one launch each way.

The half spectrum, (b, c, \*half), has all entries of a channel side by side, the coordinates all
channels of a frequency. ``weight`` and the order of the frequencies are those of
:mod:`~geoopt_projunn.nn.frequencies`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...linalg.rows import materialized
from . import interleaved
from .launching import launch

_ROWS, _FREQUENCIES = 32, 32


def gather(
    spectrum: Tensor, positions: Tensor, singles: int, weight: float
) -> tuple[Tensor, Tensor]:
    """Return the real and the complex coordinates, these multiplied by ``weight``.

    ``positions`` says where the stored frequencies are in the half spectrum; the first ``singles``
    of them are their own mirrors.
    """
    spectrum = materialized(spectrum)
    shape = spectrum.shape[:2]
    own = spectrum.new_empty((singles, *shape), dtype=spectrum.real.dtype)
    pairs = spectrum.new_empty((positions.numel() - singles, *shape))
    _launch(_gather, positions, spectrum, own, pairs, weight)
    return own, pairs


def scatter(
    own: Tensor, pairs: Tensor, sources: Tensor, half: tuple[int, ...], weight: float
) -> Tensor:
    """Return the half spectrum of these coordinates, the complex ones multiplied by ``weight``.

    ``sources`` says where each of its entries is among the self-mirrored frequencies, the pairs
    and the mirror images of these.
    """
    own, pairs = materialized(own), materialized(pairs)
    spectrum = pairs.new_empty((*pairs.shape[1:], *half))
    _launch(_scatter, sources, spectrum, own, pairs, weight)
    return spectrum


def _launch(
    kernel: Any, table: Tensor, spectrum: Tensor, own: Tensor, pairs: Tensor, weight: float
) -> None:
    rows = spectrum.shape[0] * spectrum.shape[1]
    tiles = triton.cdiv(rows, _ROWS) * triton.cdiv(table.numel(), _FREQUENCIES)
    launch(
        kernel,
        tiles,
        torch.view_as_real(spectrum),
        table,
        own,
        torch.view_as_real(pairs),
        rows,
        spectrum.numel() // rows,
        table.numel(),
        own.shape[0],
        pairs.shape[0],
        WEIGHT=float(weight),
        ROWS=_ROWS,
        FREQUENCIES=_FREQUENCIES,
    )


@triton.jit
def _gather(
    spectrum,
    positions,
    own,
    pairs,
    rows,
    half,
    stored,
    singles,
    paired,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
):
    row, f = _tile(stored, ROWS, FREQUENCIES)
    known = (row < rows)[:, None] & (f < stored)[None, :]
    place = tl.load(positions + f, f < stored, 0)
    re, im = interleaved.load(spectrum, row[:, None] * half + place[None, :], known)
    single = (f < singles)[None, :]
    into = f[None, :] * rows + row[:, None]
    tl.store(own + into, re, known & single)
    weight = tl.full((), WEIGHT, re.dtype)
    interleaved.store(pairs, into - rows * singles, known & ~single, re * weight, im * weight)


@triton.jit
def _scatter(
    spectrum,
    sources,
    own,
    pairs,
    rows,
    half,
    entries,
    singles,
    paired,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
):
    row, f = _tile(entries, ROWS, FREQUENCIES)
    known = (row < rows)[:, None] & (f < entries)[None, :]
    source = tl.load(sources + f, f < entries, 0).to(tl.int64)
    single, mirrored = source < singles, source >= singles + paired
    real = tl.load(own + (source[None, :] * rows + row[:, None]), known & single[None, :], 0.0)
    place = source - singles - tl.where(mirrored, paired, 0)
    re, im = interleaved.load(pairs, place[None, :] * rows + row[:, None], known & ~single[None, :])
    weight = tl.full((), WEIGHT, re.dtype)
    re, im = real + re * weight, im * tl.where(mirrored, -weight, weight)[None, :]
    interleaved.store(spectrum, row[:, None] * half + f[None, :], known, re, im)


@triton.jit
def _tile(frequencies, ROWS: tl.constexpr, FREQUENCIES: tl.constexpr):
    """Return which channels of the batch and which frequencies a program takes."""
    across = tl.cdiv(frequencies, FREQUENCIES)
    number = tl.program_id(0)
    row = (number // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = (number % across).to(tl.int64) * FREQUENCIES + tl.arange(0, FREQUENCIES)
    return row, f
