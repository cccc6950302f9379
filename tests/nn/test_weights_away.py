"""Whatever stands in for a weight for a while, a layer does what torch.nn.RNN does."""

import copy

import pytest
import torch
from torch.nn.utils import parametrize, prune

from geoopt_projunn.nn import OrthogonalRNN, OrthogonalRNNCell, UnitaryRNN
from tests._asserts import assert_within
from tests.nn._oracles import scattered

LAYERS = {
    f"{kind.__name__} {nonlinearity}": (kind, nonlinearity)
    for kind in (OrthogonalRNN, UnitaryRNN)
    for nonlinearity in ("modrelu", "relu", "tanh")
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_weight = pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])


def make(name):
    kind, nonlinearity = LAYERS[name]
    return scattered(kind(3, 6, nonlinearity=nonlinearity))


def wide(p):
    return p.detach().to(torch.complex128 if p.is_complex() else torch.float64)


@every_weight
@every_layer
def test_a_layer_is_converted_while_a_weight_is_away(name, weight):
    layer, x = make(name), torch.randn(5, 2, 3)
    expected = copy.deepcopy(layer).double()(x.double())
    p = getattr(layer, weight)
    delattr(layer, weight)
    layer.double()
    layer.flatten_parameters()
    layer.load_state_dict(layer.state_dict())
    assert name.split()[0] in repr(layer)
    setattr(layer, weight, torch.nn.Parameter(wide(p)))
    for actual, value in zip(layer(x.double()), expected, strict=True):
        assert torch.equal(actual, value)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("assign", [False, True])
def test_where_torchs_kernels_run_they_get_the_weights_that_were_loaded(
    nonlinearity, assign, monkeypatch
):
    layer, other = (make(f"OrthogonalRNN {nonlinearity}") for _ in range(2))
    x = torch.randn(5, 2, 3)
    expected = other(x)
    monkeypatch.setattr(OrthogonalRNN, "_fused", True)
    layer(x)
    layer.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    layer(x)[0].sum().backward()
    for actual, value in zip(layer(x), expected, strict=True):
        assert_within(actual.detach(), value.detach(), 1e-5)
    assert all(p.grad is not None for p in layer.parameters())
    # torch.nn.RNN notices by them that a weight has been replaced.
    assert [id(w) for w in layer._flat_weights] == [id(p) for p in layer.parameters()]
    assert len(layer._flat_weight_refs) == len(layer._flat_weights)


@every_layer
def test_a_layer_that_runs_without_a_weight_says_which(name):
    layer = make(name)
    del layer.weight_hh_l0
    with pytest.raises(AttributeError, match="no attribute 'weight_hh_l0'"):
        layer(torch.randn(5, 2, 3))


def test_a_cell_is_described_while_its_weight_is_away():
    cell = OrthogonalRNNCell(3, 6)
    del cell.weight_hh
    assert repr(cell) == "OrthogonalRNNCell(3, 6, nonlinearity=modrelu, init=henaff)"


@every_layer
def test_weights_of_another_precision_take_inputs_of_theirs(name):
    layer, x = make(name), torch.randn(5, 2, 3)
    weights = {key: wide(p) for key, p in layer.named_parameters()}
    states, _ = torch.func.functional_call(layer, weights, (x.double(),))
    assert torch.equal(states, copy.deepcopy(layer).double()(x.double())[0])
    assert layer(x)[0].dtype == layer.weight_hh_l0.dtype
    with pytest.raises(ValueError, match="does not match weight dtype"):
        layer(x.double())
    with pytest.raises(ValueError, match="does not match weight dtype"):
        torch.func.functional_call(layer, weights, (x,))


class Half(torch.nn.Module):
    def forward(self, w):
        return w / 2


@every_weight
@every_layer
def test_a_parametrized_weight_is_the_one_that_counts(name, weight):
    layer, x = make(name), torch.randn(5, 2, 3)
    halved = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(halved, weight).div_(2)
    parametrize.register_parametrization(layer, weight, Half())
    for _ in range(2):
        states, _ = layer(x.to(layer.bias_ih_l0.dtype))
        assert_within(states, halved(x)[0], 1e-5)
        states.abs().sum().backward()
        layer.double().float()
        layer.load_state_dict(layer.state_dict())
    assert layer.get_parameter(f"parametrizations.{weight}.original").grad.abs().sum() > 0


@every_weight
@every_layer
def test_a_pruned_weight_is_the_one_that_counts(name, weight):
    layer, x = make(name), torch.randn(5, 2, 3)
    pruned = copy.deepcopy(layer)
    mask = torch.ones(getattr(layer, weight).shape)
    mask[0] = 0
    with torch.no_grad():
        getattr(pruned, weight).mul_(mask)
    prune.custom_from_mask(layer, weight, mask)
    assert_within(layer(x)[0], pruned(x)[0], 1e-5)
    layer.double().float()
    assert_within(layer(x)[0], pruned(x)[0], 1e-5)
    prune.remove(layer, weight)
    assert_within(layer(x)[0], pruned(x)[0], 1e-5)
