"""Optimizers and sketches for steps along gradients of every kind."""

import pytest

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import SKETCHES

SETTINGS = [
    (ProjUNNRiemannianSGD, {"lr": 0.1}),
    (ProjUNNRiemannianSGD, {"lr": 0.1, "momentum": 0.9}),
    (ProjUNNRiemannianSGD, {"lr": 0.1, "error_feedback": 0.9}),
    (ProjUNNRiemannianAdam, {"lr": 0.1, "amsgrad": True}),
    (ProjUNNRiemannianAdam, {"lr": 0.1, "second_moment": "scalar"}),
]
SKETCHES_AND_RANKS = [(sketch, k) for sketch in SKETCHES for k in (1, 2)] + [("tangent", None)]
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS)
each_sketch = pytest.mark.parametrize(("sketch", "k"), SKETCHES_AND_RANKS)


def state_of(optimizer, p):
    return {name: value.clone() for name, value in optimizer.state[p].items()}
