"""Recurrent modules, and steps that show that their weights are on the manifold still."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam
from geoopt_projunn.nn import (
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryRNN,
    UnitaryRNNCell,
    orthogonality_errors,
)
from tests.nn._kept import untouched

MODULES = {
    "real layer": lambda **o: OrthogonalRNN(3, 8, 2, bidirectional=True, k=2, **o),
    "real layer, relu": lambda **o: OrthogonalRNN(3, 8, 2, nonlinearity="relu", k=2, **o),
    "complex layer": lambda **o: UnitaryRNN(3, 8, 2, bidirectional=True, k=2, **o),
    "real cell": lambda **o: OrthogonalRNNCell(3, 8, k=2, **o),
    "complex cell": lambda **o: UnitaryRNNCell(3, 8, k=2, **o),
}


every_module = pytest.mark.parametrize("name", MODULES)


class Model(torch.nn.Module):
    """The module as a part of another, beside a plain one."""

    def __init__(self, module):
        super().__init__()
        self.part = module
        self.plain = torch.nn.Linear(3, 3)


every_conversion = pytest.mark.usefixtures("swap")


def recurrent(module):
    return {n: p for n, p in module.named_parameters() if n.split(".")[-1].startswith("weight_hh")}


def assert_kept(module, k=2):
    found = untouched(module)
    weights = {n: p for n, p in found.items() if n.split(".")[-1].startswith("weight_hh")}
    assert weights
    for p in weights.values():
        assert type(p) is geoopt.ManifoldParameter
        assert p.manifold == LowRankUnitary(k)
    for name, p in found.items():
        assert name in weights or type(p) is torch.nn.Parameter
    for part in module.modules():
        if isinstance(part, torch.nn.RNNBase):
            assert all(a is getattr(part, n) for a, n in _flat(part))


def _flat(layer):
    return zip(layer._flat_weights, layer._flat_weights_names, strict=True)


def train_a_step(module, optimizer=None):
    """Take a step that moves every recurrent weight and stays on the manifold."""
    part = getattr(module, "part", module)
    optimizer = optimizer or ProjUNNRiemannianAdam(module.parameters(), lr=0.1)
    dtype = part.weight_ih_l0.dtype if hasattr(part, "weight_ih_l0") else part.weight_ih.dtype
    x = torch.randn(4, 2, 3, dtype=dtype)
    optimizer.zero_grad()
    if isinstance(part, torch.nn.RNN):
        states, _ = part(x)
    else:
        states = part(x[0], part(x[1]))
    before = {name: p.detach().clone() for name, p in recurrent(module).items()}
    (states - 1).abs().square().sum().backward()
    optimizer.step()
    for name, p in recurrent(module).items():
        assert not torch.equal(p, before[name])
    assert max(orthogonality_errors(module).values()) < 1e-4
    assert len(orthogonality_errors(module)) == len(before)
