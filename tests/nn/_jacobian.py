"""The oracle: a layer's dense matrix, from its impulse responses."""

import itertools
import math

import numpy as np
import torch

from geoopt_projunn.nn import frequencies


def signal(layer, batch=2, **options):
    shape = (batch, layer.in_channels, *layer.size)
    return torch.randn(shape, dtype=layer_dtype(layer), **options)


def layer_dtype(layer):
    dtype = layer.weight.dtype
    return dtype if hasattr(layer, "weight_real") is False else dtype.to_real()


@torch.no_grad()
def jacobian(layer, size=None):
    """Return the matrix of the layer without its bias, (outputs, inputs), for signals of a size."""
    dtype = layer_dtype(layer)
    size = layer.size if size is None else size
    count = layer.in_channels * math.prod(size)
    impulses = torch.eye(count, dtype=dtype).view(count, layer.in_channels, *size)
    nothing = torch.zeros(1, layer.in_channels, *size, dtype=dtype)
    return (layer(impulses) - layer(nothing)).flatten(1).T


def full_spectrum(layer):
    """Return W(f) for every frequency as a numpy array (*grid, n, n), from the textbook."""
    grid, n = layer.grid, layer.channels
    weight = layer.weight.detach().numpy()
    if not hasattr(layer, "weight_real"):
        return weight.reshape(*grid, n, n)
    own, pairs = frequencies.stored_frequencies(grid)
    spectrum = np.full((*grid, n, n), np.nan, dtype=weight.dtype)
    for f, w in zip(own, layer.weight_real.detach().numpy(), strict=True):
        spectrum[f] = w
    for f, w in zip(pairs, weight, strict=True):
        mirror = tuple(-k % size for k, size in zip(f, grid, strict=True))
        spectrum[f], spectrum[mirror] = w, w.conj()
    return spectrum


def textbook_matrix(layer):
    """Return the block-circulant matrix of the whole spectrum, complex, stride 1."""
    grid, n = layer.grid, layer.channels
    kernel = np.fft.ifftn(full_spectrum(layer), axes=range(len(grid)))
    points = list(itertools.product(*map(range, grid)))
    blocks = np.zeros((n, len(points), n, len(points)), dtype=complex)
    for i, p in enumerate(points):
        for j, q in enumerate(points):
            shift = tuple((a - b) % size for a, b, size in zip(p, q, grid, strict=True))
            blocks[:, i, :, j] = kernel[shift]
    used = blocks[: layer.out_channels, :, : layer.in_channels]
    return used.reshape(layer.out_channels * len(points), -1)


def assert_singular_values(layer, tolerance):
    """All are 1, or 0 as often as the layer has to drop a channel."""
    values = torch.linalg.svdvals(jacobian(layer))
    ones = min(layer.out_channels * math.prod(layer.grid), len(values))
    if layer.out_channels < layer.channels:
        distance = torch.minimum(values.abs(), (values - 1).abs())
        assert (values > 0.5).sum() == ones
    else:
        distance = (values - 1).abs()
        assert len(values) == layer.in_channels * math.prod(layer.size)
    assert distance.max() <= tolerance, f"off by {distance.max():.1e}"
