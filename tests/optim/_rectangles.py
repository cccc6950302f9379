"""Rectangular parameters, and runs of every rule on them."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

OPTIONS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.1}),
    "nesterov": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "feedback": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.5, "error_feedback": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.1, "second_moment": "scalar", "amsgrad": True}),
}
rules = pytest.mark.parametrize("rule", OPTIONS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


def parameter(*shape, k=2, dtype=torch.float64, **options):
    manifold = LowRankStiefel(k, **options)
    return on(manifold.random(*shape, dtype=dtype), manifold)


def on(x, manifold):
    plain = x.detach().as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format)
    return geoopt.ManifoldParameter(plain, manifold=manifold)


def run(rule, params, grads):
    """Step some parameters along a list of gradients for each."""
    kind, options = OPTIONS[rule]
    optimizer = kind(params, **options)
    for of_step in zip(*grads, strict=True):
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return optimizer
