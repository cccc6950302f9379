"""Weights of modules that know nothing of manifolds."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.nn import (
    OrthogonalRNN,
    orthogonality_errors,
    orthogonalize_,
)
from tests._asserts import assert_unitary, assert_within
from tests._matrices import DTYPES, polar_reference


class Holder(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 6), (2, 3, 4, 4)])
def test_it_moves_a_weight_to_the_nearest_unitary_matrix(dtype, size):
    module = Holder(torch.randn(size, dtype=dtype))
    weight, before = module.weight, module.weight.detach().clone()
    assert orthogonalize_(module, "weight", k=2, retraction="polar", sketch="lsi") is weight
    assert module.weight is weight
    assert weight.manifold == LowRankUnitary(2, retraction="polar", sketch="lsi")
    assert_unitary(weight.detach())
    assert_within(weight.detach(), polar_reference(before), 1e3 * torch.finfo(dtype).eps)
    assert weight.requires_grad
    assert weight.is_leaf


@pytest.mark.parametrize("init", ["henaff", "cayley", "identity", "haar"])
def test_it_starts_at_an_init(init):
    module = Holder(torch.full((6, 6), torch.nan))
    orthogonalize_(module, "weight", init=init)
    assert_unitary(module.weight.detach())
    assert (init == "identity") == torch.equal(module.weight, torch.eye(6))


def test_on_the_meta_device_the_values_come_with_a_load():
    saved = torch.nn.Linear(6, 6)
    orthogonalize_(saved, "weight", k=2)
    module = torch.nn.Linear(6, 6, device="meta")
    weight = orthogonalize_(module, "weight", k=2)
    assert weight.is_meta
    module.load_state_dict(saved.state_dict(), assign=True)
    assert module.weight.manifold == LowRankUnitary(2)
    assert torch.equal(module.weight, saved.weight)


def test_a_second_call_changes_the_manifold_and_no_bit_of_the_weight():
    module = Holder(torch.randn(6, 6))
    values = orthogonalize_(module, "weight").detach().clone()
    assert orthogonalize_(module, "weight", k=3).manifold == LowRankUnitary(3)
    assert torch.equal(module.weight, values)


def encoder():
    return torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)


MODULES = {
    "rnn": (lambda: torch.nn.RNN(8, 8, 2), "weight_hh_l1"),
    "linear": (lambda: torch.nn.Linear(8, 8), "weight"),
    "bilinear": (lambda: torch.nn.Bilinear(8, 8, 4), "weight"),
    "attention": (lambda: torch.nn.MultiheadAttention(8, 2), "out_proj.weight"),
    "attention, separate": (lambda: torch.nn.MultiheadAttention(8, 2, kdim=4), "q_proj_weight"),
    "encoder": (encoder, "self_attn.out_proj.weight"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_module_trains_on_the_manifold(name):
    make, path = MODULES[name]
    module = make()
    weight = orthogonalize_(module, path)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    x = torch.randn(3, 5, 8)
    arguments = {
        "bilinear": (x, x),
        "attention": (x, x, x),
        "attention, separate": (x, x[..., :4], x),
    }
    before = weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        output = module(*arguments.get(name, (x,)))
        output = output[0] if isinstance(output, tuple) else output
        output.square().sum().backward()
        optimizer.step()
    assert module.get_parameter(path) is weight
    assert not torch.equal(weight, before)
    assert_unitary(weight.detach(), ulps=100)


def test_the_weights_of_a_torch_layer_can_be_taken_over():
    layer = OrthogonalRNN(3, 8, nonlinearity="tanh")
    layer.load_state_dict(torch.nn.RNN(3, 8).state_dict())
    assert orthogonality_errors(layer)["weight_hh_l0"] > 0.1
    orthogonalize_(layer, "weight_hh_l0")
    assert orthogonality_errors(layer)["weight_hh_l0"] < 1e-5


def test_an_optimizer_made_before_holds_it_still():
    module = torch.nn.Linear(8, 8)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    start = orthogonalize_(module, "weight").detach().clone()
    module(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, start)
    assert_unitary(module.weight.detach())
