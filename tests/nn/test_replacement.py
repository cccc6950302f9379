"""Whatever replaces a parameter that belongs on a manifold is put there."""

import gc
import weakref

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN, orthogonality_errors
from tests.nn._kept import (
    MODULES,
    assert_kept,
    every_module,
    owner_of,
    parameters,
    treated,
    values,
)


def set_attribute(module, names, make):
    for name in names:
        owner, leaf = owner_of(module, name)
        setattr(owner, leaf, make(getattr(owner, leaf)))


def register(module, names, make):
    for name in names:
        owner, leaf = owner_of(module, name)
        owner.register_parameter(leaf, make(getattr(owner, leaf)))
        refresh(owner)


def refresh(owner):
    if isinstance(owner, torch.nn.RNNBase):
        owner._init_flat_weights()  # torch does so for attributes only


def set_item(module, names, make):
    for name in names:
        owner, leaf = owner_of(module, name)
        owner._parameters[leaf] = make(getattr(owner, leaf))
        refresh(owner)


SETTERS = {"attribute": set_attribute, "register_parameter": register, "item": set_item}


@every_module
@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_plain_parameter_set_in_its_place(name, setter, trained):
    make, names = MODULES[name]
    module = make()
    made = []

    def plain(p):
        made.append(torch.nn.Parameter(p.detach().clone(), requires_grad=trained))
        return made[-1]

    SETTERS[setter](module, names, plain)
    assert_kept(module, names)
    for name, p in zip(names, made, strict=True):
        assert module.get_parameter(name) is p
        assert p.requires_grad == trained


@every_module
@pytest.mark.parametrize("way", [["cpu"], ["meta", "cpu"]])
def test_a_copy_made_by_the_class_of_a_parameter(name, way):
    """accelerate makes such copies; the class alone puts them on geoopt's Euclidean."""
    make, names = MODULES[name]
    module = make()
    for device in way:
        set_item(
            module,
            names,
            lambda p, device=device: type(p)(torch.empty_like(p.detach(), device=device)),
        )
        assert_kept(module, names)


@every_module
def test_the_user_may_choose_the_euclidean(name):
    make, names = MODULES[name]
    module = make()
    set_attribute(module, names, lambda p: geoopt.ManifoldParameter(p.detach().clone()))
    assert {type(module.get_parameter(n).manifold) for n in names} == {geoopt.Euclidean}
    module.to("meta").to_empty(device="cpu")
    assert {type(module.get_parameter(n).manifold) for n in names} == {geoopt.Euclidean}


@every_module
def test_one_of_several(name):
    make, names = MODULES[name]
    for one in names:
        module = make()
        set_attribute(module, [one], lambda p: torch.nn.Parameter(p.detach().clone()))
        assert_kept(module, names)


def skip_what_torch_cannot_swap(name, swap, reasons):
    if swap and name in reasons:
        pytest.skip(reasons[name])


@every_module
def test_meta_and_back(name, swap):
    again = {"tied linears": "the second conversion of one parameter changes nothing"}
    skip_what_torch_cannot_swap(name, swap, again)
    make, names = MODULES[name]
    module = make().to("meta")
    assert all(p.is_meta for p in module.parameters())
    assert_kept(module, names)
    assert_kept(module.to_empty(device="cpu"), names)
    assert not any(p.is_meta for p in module.parameters())


@every_module
def test_precision(name, swap):
    same = {
        "tied linears": "the second conversion of one parameter changes nothing",
        "complex linear": "torch leaves complex numbers alone",
    }
    skip_what_torch_cannot_swap(name, swap, same)
    make, names = MODULES[name]
    module = make()
    before = values(module)
    module.double()
    assert_kept(module, names)
    for n, p in parameters(module).items():
        # torch's own modules leave complex numbers alone.
        assert torch.equal(p.to(before[n].dtype), before[n])
    assert_kept(module.float(), names)


def test_a_swap_that_changes_nothing_is_an_error_of_torch():
    module = treated(torch.nn.Linear(8, 8), "weight")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.raises(RuntimeError, match=r"Couldn't swap Linear.weight"):
            module.cpu()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_kept(module, ["weight"])


@every_module
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("keep_vars", [False, True])
def test_loads(name, assign, keep_vars, swap):
    referred = {"rnn": "torch.nn.RNN has weak references, also of plain parameters"}
    skip_what_torch_cannot_swap(name, swap, referred)
    make, names = MODULES[name]
    source, target = make(), make()
    expected = values(source)
    target.load_state_dict(source.state_dict(keep_vars=keep_vars), assign=assign)
    assert_kept(target, names)
    for n, p in parameters(target).items():
        assert torch.equal(p, expected[n])


@every_module
def test_the_manifold_of_the_module_wins_over_that_of_what_is_loaded(name):
    make, names = MODULES[name]
    source, target = make(), make()
    for n in names:
        source.get_parameter(n).manifold = LowRankUnitary(1)
    target.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    assert_kept(target, names)


@every_module
@pytest.mark.parametrize("how", ["on the parameter", "another parameter"])
def test_another_manifold_that_the_user_sets_is_kept(name, how):
    make, names = MODULES[name]
    module = make()
    other = LowRankUnitary(None, sweep=2)
    if how == "on the parameter":
        for n in names:
            module.get_parameter(n).manifold = other
    else:
        set_attribute(module, names, lambda p: geoopt.ManifoldParameter(p.data, manifold=other))
    assert_kept(module, names, other)
    assert_kept(module.to("meta").to_empty(device="cpu"), names, other)
    set_attribute(module, names, lambda p: torch.nn.Parameter(p.detach().clone()))
    assert_kept(module, names, other)


@pytest.mark.parametrize("manifold", [geoopt.Stiefel(), geoopt.Euclidean()])
def test_a_manifold_of_geoopt_is_kept_too(manifold):
    layer = OrthogonalRNN(8, 8)
    layer.weight_ih_l0 = geoopt.ManifoldParameter(layer.weight_ih_l0.data, manifold=manifold)
    layer.to("meta").to_empty(device="cpu")
    assert layer.weight_ih_l0.manifold is manifold
    assert layer.weight_hh_l0.manifold == LowRankUnitary()


@every_module
def test_a_deleted_name_is_plain_and_an_empty_one_is_not_forgotten(name):
    make, names = MODULES[name]
    module = make()
    for n in names:
        owner, leaf = owner_of(module, n)
        value = torch.nn.Parameter(getattr(owner, leaf).detach().clone())
        setattr(owner, leaf, None)
        assert getattr(owner, leaf) is None
        setattr(owner, leaf, value)
    assert_kept(module, names)
    for n in names:
        owner, leaf = owner_of(module, n)
        value = torch.nn.Parameter(getattr(owner, leaf).detach().clone())
        delattr(owner, leaf)
        assert not hasattr(owner, leaf)
        setattr(owner, leaf, value)
    assert_kept(module, [])
    assert_kept(module.to("meta"), [])


def test_a_module_in_training_goes_on_with_what_was_loaded():
    module = treated(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), "0.weight")
    module.load_state_dict(module.state_dict(), assign=True)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    before = module[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(module[0].weight, before)
    assert orthogonality_errors(module, exact=True)["0.weight"] < 1e-5


@every_module
def test_a_module_goes_as_soon_as_nobody_refers_to_it(name):
    make, _ = MODULES[name]
    gc.collect()
    gc.disable()
    try:
        module = make()
        reference = weakref.ref(module)
        del module
        assert reference() is None
    finally:
        gc.enable()
