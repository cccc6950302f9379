"""Replicas that see different data stay equal bit for bit."""

import geoopt
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from tests._replicas import on_two_replicas

SETTINGS = {
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.05, "second_moment": "scalar"}),
}


class Model(torch.nn.Module):
    """One real and one complex matrix of each sketch, and a plain layer."""

    def __init__(self):
        super().__init__()
        self.read = torch.nn.Linear(8, 2)
        self.matrices = torch.nn.ParameterList()
        for dtype in (torch.float32, torch.complex64):
            for sketch in ("tangent", "lsi", "column"):
                manifold = LowRankUnitary(k=2, sketch=sketch)
                self.matrices.append(geoopt.ManifoldParameter(manifold.random(8, 8, dtype=dtype)))

    def forward(self, x):
        real, complex_ = x, x.to(torch.complex64)
        for weight in self.matrices[:3]:
            real = torch.tanh(real @ weight)
        for weight in self.matrices[3:]:
            complex_ = complex_ @ weight
        return self.read(real + complex_.real * complex_.imag)


def train(rank):
    outcome = {}
    for name, (kind, options) in SETTINGS.items():
        torch.manual_seed(rank)  # replicas share no seed: DDP sends rank 0's weights
        model = Model()
        replica = DistributedDataParallel(model)
        start = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer = kind(model.parameters(), **options)
        for _ in range(20):
            optimizer.zero_grad()
            replica(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
            torch.rand(rank + 1)  # nor the state of a generator
        outcome[name] = {
            "start": start,
            "end": {key: p.detach() for key, p in model.named_parameters()},
            "state": optimizer.state_dict()["state"],
        }
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return on_two_replicas(train, tmp_path_factory.mktemp("replicas"))


@pytest.mark.parametrize("name", SETTINGS)
def test_replicas_end_with_the_same_bits(outcomes, name):
    left, right = (outcome[name] for outcome in outcomes)
    assert len(left["end"]) == 8
    for key, value in left["end"].items():
        assert torch.equal(value, right["end"][key])
        assert not torch.equal(value, left["start"][key])


@pytest.mark.parametrize("name", SETTINGS)
def test_replicas_end_with_the_same_state(outcomes, name):
    left, right = (outcome[name]["state"] for outcome in outcomes)
    assert left.keys() == right.keys()
    for key, state in left.items():
        assert all(torch.equal(value, right[key][name]) for name, value in state.items())
