"""A weight that is on a manifold already, or in another module too."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, orthogonality_errors, orthogonalize_, project_


class Holder(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


def test_values_are_put_back_without_naming_weights():
    layer = OrthogonalRNN(3, 8, k=2, nonlinearity="tanh")
    layer.load_state_dict(torch.nn.RNN(3, 8).state_dict())
    others = {n: p.detach().clone() for n, p in layer.named_parameters() if n != "weight_hh_l0"}
    project_(layer)
    assert orthogonality_errors(layer)["weight_hh_l0"] < 1e-5
    assert layer.weight_hh_l0.manifold == LowRankUnitary(2)
    for n, value in others.items():
        assert torch.equal(layer.get_parameter(n), value)


SET = LowRankUnitary(2, retraction="polar", sketch="lsi", sweep=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SET),
        ({"k": 3}, LowRankUnitary(3, retraction="polar", sketch="lsi", sweep=3)),
        ({"k": None}, LowRankUnitary(None, retraction="polar", sketch="lsi", sweep=3)),
        ({"retraction": "cayley"}, LowRankUnitary(2, retraction="cayley", sketch="lsi", sweep=3)),
        ({"sketch": "column"}, LowRankUnitary(2, retraction="polar", sketch="column", sweep=3)),
    ],
    ids=["none", "k", "full rank", "retraction", "sketch"],
)
def test_a_second_call_keeps_the_options_that_are_not_given(options, expected):
    layer = OrthogonalRNN(3, 8)
    layer.weight_hh_l0.manifold = SET
    assert orthogonalize_(layer, "weight_hh_l0", **options).manifold == expected
    assert layer.to("meta").weight_hh_l0.manifold == expected


def test_a_second_call_keeps_the_blocks():
    layer = torch.nn.LSTM(8, 8)
    weight = orthogonalize_(layer, "weight_hh_l0", blocks=4)
    before = weight.detach().clone()
    assert orthogonalize_(layer, "weight_hh_l0", k=2).manifold == LowRankUnitary(2, blocks=4)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("manifold", [None, geoopt.Stiefel()])
def test_a_first_call_has_the_defaults_of_the_manifold(manifold):
    module = Holder(torch.eye(6))
    if manifold is not None:
        module.weight = geoopt.ManifoldParameter(module.weight.data, manifold=manifold)
    assert orthogonalize_(module, "weight").manifold == LowRankUnitary()
    module = Holder(torch.eye(6))
    assert orthogonalize_(module, "weight", None).manifold == LowRankUnitary(None)


def test_a_module_outside_that_shares_the_weight_keeps_it_too():
    first, second = Holder(torch.randn(6, 6)), torch.nn.Linear(6, 6)
    second.weight = first.weight
    orthogonalize_(first, "weight", 2)
    assert second.to("meta").weight.manifold == LowRankUnitary(2)
    with pytest.raises(ValueError, match="`weight` of Linear is on the LowRankUnitary"):
        second.weight = torch.nn.Parameter(torch.ones(6, 5))
