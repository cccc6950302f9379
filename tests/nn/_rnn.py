"""Recurrent layers to compare, and what is compared of them."""

import torch

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._oracles import (
    LENGTHS,
    scattered,
    wide,
)

LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}


NONLINEARITIES = ("modrelu", "relu", "tanh")


T, N, INPUTS, HIDDEN = max(LENGTHS), len(LENGTHS), 3, 6


def make(kind, *args, **options):
    options = {"init": "haar", "dtype": wide(kind), **options}
    return scattered(LAYERS[kind](INPUTS, HIDDEN, *args, **options))


def gradients(outputs, leaves):
    """Differentiate a generic real function of outputs and last states."""
    loss = 0
    generator = torch.Generator().manual_seed(1)
    for output in outputs:
        noise = torch.randn(output.shape, dtype=output.dtype, generator=generator)
        loss = loss + (output * noise).real.sum()
    return torch.autograd.grad(loss, leaves)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert_within(a, b, 1e-10)
