"""Refused steps, which leave all parameters as they are."""

import geoopt
import pytest
import torch

from ._helpers import Snapshot, unitary_parameter


def company(dtype=torch.float32):
    """Parameters of every kind, with gradients, that a refused step must not touch."""
    sphere = geoopt.Sphere()
    params = [
        unitary_parameter(6, 6, dtype=dtype),
        torch.nn.Parameter(torch.randn(3)),
        geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere),
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def assert_refused(optimizer, error, match):
    """A step raises, twice the same, and parameters, gradients and state stay."""
    before = Snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(error, match=match):
            optimizer.step()
        before.assert_unchanged()


def around(culprit, front, back):
    """Groups with innocent parameters before, beside and after the culprit."""
    return [{"params": front}, {"params": [*back[:1], culprit]}, {"params": back[1:]}]
