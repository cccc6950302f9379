"""What the tests of backends share."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends.choice import _BACKENDS
from geoopt_projunn.backends.reference import Reference
from geoopt_projunn.backends.triton import support
from geoopt_projunn.linalg.dense import skewh
from tests._matrices import unitary

REFERENCE = Reference()
OTHERS = [name for name in backends.available() if name != "reference"]
"""Every backend must do what the reference does."""
each_other = pytest.mark.parametrize("name", OTHERS)

SGD, ADAM = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
RULES = {
    "gradient": (SGD, {"lr": 0.1}),
    "maximize": (SGD, {"lr": 0.1, "maximize": True}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "feedback": (SGD, {"lr": 0.1, "momentum": 0.5, "error_feedback": 0.9}),
    "angle": (SGD, {"lr": 0.3, "momentum": 0.9, "nesterov": True, "normalize": "angle"}),
    "spectral": (ADAM, {"lr": 0.2, "second_moment": "scalar", "normalize": "spectral"}),
    "adam": (ADAM, {"lr": 0.02, "second_moment": "elementwise"}),
    "amsgrad": (
        ADAM,
        {"lr": 0.02, "amsgrad": True, "second_moment": "elementwise", "betas": (0.8, 0.9)},
    ),
    "mean": (ADAM, {"lr": 0.02, "second_moment": "mean"}),
    "scalar": (ADAM, {"lr": 0.2, "second_moment": "scalar"}),
    "scalar amsgrad": (ADAM, {"lr": 0.2, "second_moment": "scalar", "amsgrad": True}),
}


def device_of(name):
    """Where a backend takes steps: of the GPUs and CPUs that there are, the one it is made for."""
    return torch.device("cuda" if name == "triton" and not support.INTERPRETED else "cpu")


def backend(name):
    return _BACKENDS[name]


def draw(n, dtype, b=3, p=None):
    """Points, directions and the numbers of their steps."""
    counter = torch.tensor([0, 5, 1_000_003, 2**40])[:b]
    x = unitary(b, n, n, dtype=dtype)[..., :p].contiguous()
    return x, torch.randn(x.shape, dtype=dtype), counter


def by_columns(x):
    return x.mT.contiguous().mT


def stretched(x):
    return torch.stack((x, x), dim=-1).flatten(-2)[..., ::2]


def generator(sketched):
    return sketched.rows.mH @ skewh(sketched.core) @ sketched.rows
