"""Optimizers and parameters of all kinds, and runs of them to compare."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import assert_same_bits, assert_same_state, unitary_parameter

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "amsgrad": (
        ProjUNNRiemannianAdam,
        {"lr": 0.01, "amsgrad": True, "second_moment": "elementwise"},
    ),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "scalar", "amsgrad": True}),
}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


def mixed_parameters(dtype=torch.float32):
    """One parameter of each kind that an optimizer may hold."""
    sphere = geoopt.Sphere()
    return [
        unitary_parameter(6, 6, dtype=dtype, k=2),
        unitary_parameter(2, 6, 6, dtype=dtype, sketch="lsi", retraction="polar"),
        geoopt.ManifoldParameter(sphere.random(3, 4), manifold=sphere),
        torch.nn.Parameter(torch.randn(3, 4, dtype=dtype)),
    ]


def clones(params):
    return [copy.deepcopy(p) for p in params]


def run(optimizer, params, steps):
    """Step along gradients that the number of the step decides."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()


def assert_same_run(left, left_params, right, right_params):
    for p, q in zip(left_params, right_params, strict=True):
        assert_same_bits(p, q)
        assert_same_state(left.state[p], right.state[q])
