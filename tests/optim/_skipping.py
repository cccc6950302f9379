"""Parameters of every kind, and gradients of which one entry is not finite."""

import geoopt
import torch

from ._helpers import (
    unitary_parameter,
)


def company(dtype=torch.float64):
    """Parameters of every kind that an optimizer may hold."""
    sphere = geoopt.Sphere()
    return [
        unitary_parameter(6, 6, dtype=dtype, k=2),
        unitary_parameter(3, 4, 4, dtype=dtype, sketch="lsi"),
        unitary_parameter(4, 4, dtype=dtype.to_complex()),
        geoopt.ManifoldParameter(sphere.random(3, 4, dtype=dtype), manifold=sphere),
        torch.nn.Parameter(torch.randn(3, 4, dtype=dtype)),
        torch.nn.Parameter(torch.randn(5, dtype=dtype.to_complex())),
        torch.nn.Parameter(torch.randn(0, dtype=dtype)),
    ]


def gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in params]


def feed(optimizer, params, grads):
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    optimizer.step()


def spoilt(params, seed, culprit, bad):
    grads = gradients(params, seed)
    grads[culprit].view(-1)[-1] = bad
    return grads
