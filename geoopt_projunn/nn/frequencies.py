r"""The coordinates of a signal on a torus: one vector of channels for each frequency.

The discrete Fourier transform of a real signal satisfies :math:`X(-f) = \overline{X(f)}`. Where a
frequency is its own mirror (0 or half of an even size on every axis), the value is real. All other
frequencies form pairs, and one of each pair is stored, a complex value. The transform is
orthonormal, so that

.. math:: \lVert x \rVert^2 = \sum_{f = -f} |X(f)|^2 + 2 \sum_{\text{pairs}} |X(f)|^2 .

Signals have shape (b, c, \*grid), coordinates (frequencies, b, c): a matrix for each frequency
multiplies them as one batch, and no matrix is ever copied for a mirror.
"""

import functools
import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from .kernels.launching import serve
from .transforms import constant, needs_torch_operations

Index = tuple[int | slice, ...]


@constant
def regions(grid: tuple[int, ...]) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """Return where torch.fft.rfftn puts the frequencies that determine all others.

    Parameters
    ----------
    grid : tuple of int
        the size of each axis

    Returns
    -------
    tuple of tuples
        Indices into the frequency axes of the half spectrum: the self-mirrored frequencies, one
        by one, and boxes of frequencies that hold one of each pair.
    """
    if not grid:
        return ((),), ()
    *rest, n = grid
    # Mirroring maps each of these hyperplanes to itself, and the interior out of the half.
    planes = (0,) if n % 2 else (0, n // 2)
    own, boxes = regions(tuple(rest))
    interior = ((*(slice(None) for _ in rest), slice(1, (n + 1) // 2)),) if n > 2 else ()
    return (
        tuple((*index, plane) for plane in planes for index in own),
        interior + tuple((*index, plane) for plane in planes for index in boxes),
    )


def stored_frequencies(
    grid: tuple[int, ...],
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the self-mirrored frequencies and one of each pair, in the order of storage."""
    own, boxes = regions(grid)
    half = _half(grid)

    def points(index: Index) -> Iterator[tuple[int, ...]]:
        axes = (
            range(*at.indices(n)) if isinstance(at, slice) else (at,)
            for at, n in zip(index, half, strict=True)
        )
        return product(*axes)

    return (
        tuple(point for index in own for point in points(index)),
        tuple(point for index in boxes for point in points(index)),
    )


def analyse(
    x: torch.Tensor, grid: tuple[int, ...], weight: float = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coordinates of a real signal.

    Parameters
    ----------
    x : torch.Tensor
        (b, c, *grid), real
    grid : tuple of int
        Given, since torch.compile and torch.export may know the sizes of x by name only.
    weight : float
        Multiplies the coordinates of the pairs. An integer by default:
        ``torch.compile(dynamic=True)`` would take 1.0 for a number that changes.

    Returns
    -------
    own : torch.Tensor
        (self-mirrored frequencies, b, c), real
    pairs : torch.Tensor
        (pairs of frequencies, b, c), complex
    """
    if needs_torch_operations(x):
        return _analyse_in_torch(x, grid, weight)
    return _Analysis.apply(x, grid, weight)  # type: ignore[no-untyped-call]


def synthesise(
    own: torch.Tensor, pairs: torch.Tensor, grid: tuple[int, ...], weight: float = 1
) -> torch.Tensor:
    """Return the real signal, (b, c, *grid), of the coordinates ``own`` and ``weight * pairs``."""
    if needs_torch_operations(own, pairs):
        return _synthesise_plainly(own, pairs, grid, weight)
    return _Synthesis.apply(own, pairs, grid, weight)  # type: ignore[no-untyped-call]


def analyse_complex(x: torch.Tensor) -> torch.Tensor:
    """Return the coordinates, (frequencies, b, c), of a complex signal, (b, c, *grid)."""
    spectrum = torch.fft.fftn(x, dim=_axes(x.shape[2:]), norm="ortho")
    return spectrum.flatten(2).permute(2, 0, 1).contiguous()


def synthesise_complex(coordinates: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Return the complex signal, (b, c, *grid), that has these coordinates."""
    spectrum = coordinates.permute(1, 2, 0).unflatten(-1, grid)
    return torch.fft.ifftn(spectrum, dim=_axes(grid), norm="ortho")


# The backward of torch's own rfftn transforms the whole spectrum, at twice the cost and memory.
# Each of the two functions is the adjoint of the other, up to a factor of 2 for the pairs, which
# count twice in the norm. On a GPU each moves the frequencies by one kernel; elsewhere by slices,
# which on a CPU are copied faster than by a list of places.


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, grid: tuple[int, ...], weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.grid, ctx.weight = grid, weight
        if serve(x):
            return _analyse_in_kernels(x, grid, weight)
        # Before the transform there are half as many numbers to multiply.
        weighted = x if weight == 1 else x * weight
        half = _frequencies_first(torch.fft.rfftn(weighted, dim=_axes(grid), norm="ortho"))
        own, boxes = regions(grid)
        parts = [half[index] for index in boxes]
        count = sum(math.prod(part.shape[:-2]) for part in parts)
        pairs = half.new_empty(count, *half.shape[-2:])
        for part, place in zip(parts, _places(pairs, parts), strict=True):
            place.copy_(part)
        return torch.stack([half[index].real / weight for index in own]), pairs

    @staticmethod
    def backward(
        ctx: Any, own: torch.Tensor, pairs: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        return synthesise(own, pairs, ctx.grid, ctx.weight / 2), None, None


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: torch.Tensor, pairs: torch.Tensor, grid: tuple[int, ...], weight: float
    ) -> torch.Tensor:
        ctx.grid, ctx.weight = grid, weight
        if serve(pairs):
            return _synthesise_in_kernels(own, pairs, grid, weight)
        singles, boxes = regions(grid)
        spectrum = pairs.new_empty((*pairs.shape[1:], *_half(grid)))
        half = _frequencies_first(spectrum)
        for index, value in zip(singles, own, strict=True):
            half[index].copy_(value / weight)
        parts = [half[index] for index in boxes]
        for index, part, place in zip(boxes, parts, _places(pairs, parts), strict=True):
            part.copy_(place)
            if isinstance(index[-1], int):
                _mirror(half, index, grid).copy_(_mirrored(place, index).conj())
        x = torch.fft.irfftn(spectrum, s=grid, dim=_axes(grid), norm="ortho")
        return x if weight == 1 else x.mul_(weight)

    @staticmethod
    def backward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        return *analyse(x, ctx.grid, 2 * ctx.weight), None, None


def _analyse_in_torch(
    x: torch.Tensor, grid: tuple[int, ...], weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    half = (
        torch.fft.rfftn(x, dim=_axes(grid), norm="ortho").reshape(*x.shape[:2], -1).permute(2, 0, 1)
    )
    own, pairs, _ = _positions(grid)
    return half[own].real, half[pairs] * weight


def _synthesise_plainly(
    own: torch.Tensor, pairs: torch.Tensor, grid: tuple[int, ...], weight: float
) -> torch.Tensor:
    weighted = pairs * weight
    # Not weighted.conj(): for a batch of tangents it fails an internal assertion of torch.
    mirrors = torch.complex(weighted.real, -weighted.imag)
    values = torch.cat([own.to(pairs.dtype), weighted, mirrors])
    half = values[_positions(grid)[2]].permute(1, 2, 0).reshape(*pairs.shape[1:], *_half(grid))
    return torch.fft.irfftn(half, s=grid, dim=_axes(grid), norm="ortho")


def _analyse_in_kernels(
    x: torch.Tensor, grid: tuple[int, ...], weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from .kernels import frequencies

    half = torch.fft.rfftn(x, dim=_axes(grid), norm="ortho")
    singles = len(regions(grid)[0])
    return frequencies.gather(half, _tables(grid, x.device)[0], singles, weight)


def _synthesise_in_kernels(
    own: torch.Tensor, pairs: torch.Tensor, grid: tuple[int, ...], weight: float
) -> torch.Tensor:
    from .kernels import frequencies

    sources = _tables(grid, pairs.device)[1]
    half = frequencies.scatter(own, pairs, sources, _half(grid), weight)
    return torch.fft.irfftn(half, s=grid, dim=_axes(grid), norm="ortho")


@functools.lru_cache(maxsize=64)
def _tables(grid: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`_positions` tells, on a device. The first call for a grid copies there."""
    own, pairs, sources = _positions(grid)
    return torch.tensor([*own, *pairs], device=device), torch.tensor(sources, device=device)


@constant
def _positions(grid: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Return where the half spectrum, flattened, has the stored frequencies, and the reverse.

    The reverse counts the self-mirrored frequencies, the pairs, and the mirror images of these.
    """
    half = {f: at for at, f in enumerate(product(*map(range, _half(grid))))}
    own, pairs = stored_frequencies(grid)
    mirrors = (tuple(-k % n for k, n in zip(f, grid, strict=True)) for f in pairs)
    values = {f: at for at, f in enumerate((*own, *pairs, *mirrors))}
    return [half[f] for f in own], [half[f] for f in pairs], [values[f] for f in half]


def _half(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the half spectrum, as of torch.fft.rfftn."""
    return (*grid[:-1], grid[-1] // 2 + 1)


def _axes(grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(2, 2 + len(grid)))


def _frequencies_first(spectrum: torch.Tensor) -> torch.Tensor:
    """View (b, c, *half) as (*half, b, c)."""
    return spectrum.permute(*range(2, spectrum.dim()), 0, 1)


def _places(pairs: torch.Tensor, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """View the stored pairs as one tensor for each box, of the box's shape."""
    counts = [math.prod(part.shape[:-2]) for part in parts]
    places = pairs.split(counts) if counts else ()
    return [place.view(part.shape) for place, part in zip(places, parts, strict=True)]


def _mirror(half: torch.Tensor, index: Index, grid: tuple[int, ...]) -> torch.Tensor:
    """View the mirror image of a box within a hyperplane that is its own mirror."""
    return half[
        tuple(
            slice(n // 2 + 1, n) if isinstance(at, slice) and at.start else at
            for at, n in zip(index, grid, strict=True)
        )
    ]


def _mirrored(box: torch.Tensor, index: Index) -> torch.Tensor:
    """Reverse the axes of a box; frequency 0 of a whole axis stays where it is."""
    slices = [at for at in index if isinstance(at, slice)]
    whole = [axis for axis, at in enumerate(slices) if at.start is None]
    flipped = box.flip(tuple(range(len(slices))))
    return flipped.roll((1,) * len(whole), whole) if whole else flipped
