"""Copies of modules keep parameters on their manifolds, with the original and without it."""

import copy
import gc
import io
import pickle
from collections import OrderedDict

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, orthogonalize_
from tests.nn._kept import (
    MODULES,
    assert_kept,
    every_module,
    owner_of,
    parameters,
    treated,
    untouched,
    values,
)


def plain(p):
    return torch.nn.Parameter(p.detach().clone())


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deep": copy.deepcopy,
    "shallow": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "file": saved,
    "copy of a copy": lambda m: saved(copy.deepcopy(m)),
}


@every_module
@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_it_as_well(name, how):
    make, names = MODULES[name]
    module = make()
    expected = values(module)
    duplicate = COPIES[how](module)
    assert_kept(duplicate, names)
    for n, p in parameters(duplicate).items():
        assert torch.equal(p, expected[n])
    if how != "shallow":
        for n in names:
            owner, leaf = owner_of(duplicate, n)
            setattr(owner, leaf, torch.nn.Parameter(2 * getattr(owner, leaf).detach()))
        assert_kept(duplicate, names)
        for n, value in expected.items():
            assert torch.equal(module.get_parameter(n), value)
    duplicate.load_state_dict(make().state_dict(), assign=True)
    assert_kept(duplicate, names)
    assert_kept(duplicate.to("meta"), names)


@pytest.mark.parametrize("how", COPIES)
def test_copies_know_the_manifold_of_a_name_that_is_empty(how):
    module = treated(torch.nn.Linear(8, 8), "weight")
    value = plain(module.weight)
    module.weight = None
    duplicate = COPIES[how](module)
    duplicate.weight = value
    assert_kept(duplicate, ["weight"])


@every_module
@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_shallow_copies_load_with_and_without_the_original(name, times, gone):
    make, names = MODULES[name]
    original = make()
    duplicate = original
    for _ in range(times):
        duplicate = copy.copy(duplicate)
    if gone:
        del original
        gc.collect()
    state = values(make())
    duplicate.load_state_dict(state, assign=True)
    assert_kept(duplicate, names)
    for n, p in parameters(duplicate).items():
        assert torch.equal(p, state[n])


@every_module
@pytest.mark.parametrize("gone", [True, False])
def test_replicas_take_tensors_with_a_history_and_load(name, gone):
    make, names = MODULES[name]
    original, leaf = owner_of(make(), names[0])
    replica = original._replicate_for_data_parallel()
    value = 1 * getattr(original, leaf)
    setattr(replica, leaf, value)
    assert getattr(replica, leaf) is value
    if gone:
        del original
        gc.collect()
    for assign in (False, True):
        replica.load_state_dict({}, strict=False, assign=assign)
    assert not list(replica.parameters())


def test_a_layer_from_a_file_without_a_record():
    layer = OrthogonalRNN(3, 8)
    state = layer.__getstate__()
    state["_parameters"] = dict(state["_parameters"].items())
    for name in ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"):
        state[name] = OrderedDict()
    other = OrthogonalRNN.__new__(OrthogonalRNN)
    other.__setstate__(state)
    assert_kept(other.double().to("meta"), ["weight_hh_l0"], LowRankUnitary())


def test_a_treated_module_from_a_file_without_a_record_is_treated_again():
    module = treated(torch.nn.Linear(8, 8), "weight")
    module._parameters = dict(module._parameters)
    module._load_state_dict_pre_hooks.clear()
    module._load_state_dict_post_hooks.clear()
    other = saved(module)
    before = other.weight.detach().clone()
    orthogonalize_(other, "weight")
    assert torch.equal(other.weight, before)
    assert_kept(other.to("meta"), ["weight"])


def clone(module):
    """Clone a module as learn2learn does."""
    other = module.__new__(type(module))
    other.__dict__ = module.__dict__.copy()
    other._parameters = other._parameters.copy()
    other._buffers = other._buffers.copy()
    other._modules = {n: clone(part) for n, part in module._modules.items()}
    if isinstance(other, torch.nn.RNNBase):
        other._flat_weights = list(other._flat_weights)
    return other


@every_module
@pytest.mark.parametrize("gone", [True, False])
def test_a_clone_is_on_its_own(name, gone):
    make, names = MODULES[name]
    module = make()
    before = untouched(module)
    other = clone(module)
    for n in names:
        owner, leaf = owner_of(other, n)
        setattr(owner, leaf, plain(getattr(owner, leaf)))
    assert_kept(other, names)
    assert all(p is before[n] for n, p in untouched(module).items())
    state = {n: 2 * value for n, value in values(other).items()}
    if gone:
        del module, before, owner
        gc.collect()
    else:
        for n in names:
            module.get_parameter(n).manifold = LowRankUnitary(1)
    other.load_state_dict(state, assign=True)
    assert_kept(other, names)
    for n, p in untouched(other).items():
        assert torch.equal(p, state[n])


@every_module
def test_a_clone_takes_tensors_with_a_history(name):
    make, names = MODULES[name]
    other = clone(make())
    for n in names:
        owner, leaf = owner_of(other, n)
        value = 1 * getattr(owner, leaf)
        owner._parameters[leaf] = value
        assert owner._parameters[leaf] is value
