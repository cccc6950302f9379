"""Keeping a record of manifolds is not in the way of what torch does with modules."""

import copy

import geoopt
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state
from torch.nn.utils import prune

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNNCell, orthogonalize_
from tests._able import (
    export_parameters_of_a_subclass,
    fake_parameters_of_a_subclass,
    skip_unless,
)
from tests._asserts import assert_within


def make():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    orthogonalize_(module, "0.weight")
    return module


def assert_kept(module):
    assert type(module[0].weight) is geoopt.ManifoldParameter
    assert module[0].weight.manifold == LowRankUnitary()
    assert type(module[2].weight) is torch.nn.Parameter


def plain(module):
    """Return the same module without a manifold."""
    twin = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    twin.load_state_dict(module.state_dict())
    return twin


def test_the_parameters_are_a_dictionary_of_torch_s():
    module = make()
    parameters = module[0]._parameters
    assert isinstance(parameters, dict)
    items = parameters.items()
    assert len(items) == 2
    assert [name for name, _ in items] == list(parameters) == ["weight", "bias"]
    assert all(p is parameters[name] for name, p in items)
    assert list(module.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert dir(module[0]) == dir(plain(module)[0])


def test_functional_calls_with_other_values():
    module, x = make(), torch.randn(3, 8)
    weight = module[0].weight
    values = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    expected = functional_call(plain(module), values, x)
    assert torch.equal(functional_call(module, values, x), expected)
    assert not any(hasattr(value, "manifold") for value in values.values())
    assert module[0].weight is weight
    assert_kept(module)


def test_functional_gradients():
    module, x = make(), torch.randn(3, 8)

    def loss(module):
        return lambda values: functional_call(module, values, x).square().sum()

    values = {name: p.detach() for name, p in module.named_parameters()}
    expected = grad(loss(plain(module)))(values)
    for name, value in grad(loss(module))(values).items():
        assert_within(value, expected[name], 1e-6)
    assert_kept(module)


def test_ensembles():
    modules, x = [make() for _ in range(3)], torch.randn(4, 8)
    parameters, buffers = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    assert_kept(base)
    outputs = torch.vmap(
        lambda p, b: functional_call(base, (p, b), (x,)),
    )(parameters, buffers)
    for output, module in zip(outputs, modules, strict=True):
        assert_within(output.detach(), module(x).detach(), 1e-6)
    assert_kept(base)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    if strict:
        skip_unless(export_parameters_of_a_subclass)
    module, x = make(), torch.randn(3, 8)
    exported = torch.export.export(module, (x,), strict=strict)
    assert_within(exported.module()(x).detach(), module(x).detach(), 1e-6)
    assert_kept(module)


def test_parameters_without_values():
    skip_unless(fake_parameters_of_a_subclass)
    mode = torch._subclasses.FakeTensorMode()
    module = make()
    module._apply(mode.from_tensor)
    with mode:
        assert module(torch.empty(3, 8)).shape == (3, 8)
        assert OrthogonalRNNCell(3, 8)(torch.empty(3, 3)).shape == (3, 8)


def test_pruning_takes_the_name_away_and_gives_it_back():
    module = make()
    weight = module[0].weight
    prune.l1_unstructured(module[0], "weight", 5)
    assert "weight" not in dict(module[0].named_parameters())
    assert (module[0].weight == 0).sum() == 5
    prune.remove(module[0], "weight")
    assert module[0].weight is weight
    assert_kept(module)


def test_a_weight_that_is_given_to_a_module_without_a_record():
    module, other = make(), torch.nn.Linear(8, 8)
    other.weight = module[0].weight
    assert other.weight is module[0].weight
    assert_kept(module.double())
    assert other.weight is module[0].weight
    orthogonalize_(other, "weight")
    other.to("meta")
    assert other.weight.manifold == LowRankUnitary()
    assert_kept(module)
