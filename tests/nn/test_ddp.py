"""Replicas that see different data hold the same bits, on the manifold."""

import geoopt
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalRNN, RealReadout, UnitaryRNN, orthogonality_errors
from tests._replicas import on_two_replicas


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.real = OrthogonalRNN(3, 8, 2, bidirectional=True)
        self.relu = OrthogonalRNN(16, 8, nonlinearity="relu", k=2)
        self.complex = UnitaryRNN(8, 8)
        self.readout = RealReadout(8, 2)

    def forward(self, x):
        for layer in (self.real, self.relu, self.complex):
            x, _ = layer(x)
        return self.readout(x)


def train(rank):
    torch.manual_seed(rank)
    model = Model()
    replica = DistributedDataParallel(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = ProjUNNRiemannianAdam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        replica(torch.randn(6, 4, 3)).square().mean().backward()
        optimizer.step()
    kinds = {n: isinstance(p, geoopt.ManifoldParameter) for n, p in model.named_parameters()}
    end = {name: p.detach() for name, p in model.named_parameters()}
    return {"start": start, "end": end, "kinds": kinds, "errors": orthogonality_errors(model)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return on_two_replicas(train, tmp_path_factory.mktemp("replicas"))


def test_replicas_end_with_the_same_bits(outcomes):
    left, right = (outcome["end"] for outcome in outcomes)
    for name, value in left.items():
        assert torch.equal(value, right[name])
        assert not torch.equal(value, outcomes[0]["start"][name])


def test_recurrent_weights_stay_on_the_manifold(outcomes):
    for outcome in outcomes:
        assert all(is_one == ("weight_hh" in name) for name, is_one in outcome["kinds"].items())
        assert len(outcome["errors"]) == 6
        assert max(outcome["errors"].values()) < 1e-5
