"""Whatever is done to ``module._parameters``, nothing fails and nothing leaves unnoticed."""

import copy
from collections import OrderedDict

import pytest
import torch

from tests.nn._kept import (
    MODULES,
    OTHERS,
    OWN,
    assert_kept,
    every_module,
    owner_of,
    treated,
    untouched,
)

SETTERS = {
    "update": lambda d, name, p: d.update({name: p}),
    "update by keyword": lambda d, name, p: d.update(**{name: p}),
    "update by pairs": lambda d, name, p: d.update([(name, p)]),
    "in place": lambda d, name, p: d.__ior__({name: p}),
}


def plain(p):
    return torch.nn.Parameter(p.detach().clone())


@every_module
@pytest.mark.parametrize("setter", SETTERS)
def test_a_plain_parameter_is_put_on_the_manifold(name, setter):
    make, names = MODULES[name]
    module = make()
    for n in names:
        owner, leaf = owner_of(module, n)
        p = plain(getattr(owner, leaf))
        SETTERS[setter](owner._parameters, leaf, p)
        assert owner._parameters[leaf] is p
        if isinstance(owner, torch.nn.RNNBase):
            owner._init_flat_weights()
    assert_kept(module, names)


@every_module
def test_an_attribute_of_the_dictionary_is_that_of_a_dict(name):
    make, names = MODULES[name]
    module = make()
    owner, leaf = owner_of(module, names[0])
    record, same = owner._parameters, dict(owner._parameters)
    p = record[leaf]
    assert record.setdefault(leaf, None) is p
    assert record.setdefault("another") is None
    assert record.pop("another") is None
    assert record.pop("another", 5) == 5
    with pytest.raises(KeyError, match="another"):
        record.pop("another")
    assert list(record) == list(same)
    assert list(record.values()) == list(same.values())
    assert record | {"a": 1} == {**same, "a": 1}
    record.clear()
    assert not record
    assert leaf not in dict(owner.named_parameters())


TAKERS = {
    "pop": lambda d, name: d.pop(name),
    "popitem": lambda d, name: [d.popitem() for _ in range(len(d))],
    "del": lambda d, name: d.__delitem__(name),
    "clear": lambda d, name: d.clear(),
}


@every_module
@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_taken_out_is_forgotten(name, taker):
    make, names = MODULES[name]
    module = make()
    owner, leaf = owner_of(module, names[0])
    p = plain(getattr(owner, leaf))
    TAKERS[taker](owner._parameters, leaf)
    assert leaf not in dict(owner.named_parameters())
    owner.register_parameter(leaf, p)
    assert type(untouched(module)[names[0]]) is torch.nn.Parameter


@every_module
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dictionary_in_its_place_is_made_a_record_again(name, kind):
    make, names = MODULES[name]
    for change in (
        lambda m: m.load_state_dict({n: p.clone() for n, p in m.state_dict().items()}, assign=True),
        lambda m: m.load_state_dict(m.state_dict()),
        lambda m: m.double(),
        lambda m: m.to("meta"),
    ):
        module = make()
        for part in module.modules():
            part._parameters = kind(part._parameters)
        change(module)
        if name in OWN:
            assert_kept(module, names)
            assert_kept(module.to("meta"), names)


class Theirs(dict):
    """A dictionary of another library, as DeepSpeed has one."""


@every_module
def test_a_dictionary_of_another_library_is_left_alone(name):
    make, _ = MODULES[name]
    module = make()
    for part in module.modules():
        part._parameters = Theirs(part._parameters)
    module.load_state_dict(module.state_dict())
    module.load_state_dict(module.state_dict(), assign=True)
    module.double().to("meta").to_empty(device="cpu")
    copy.deepcopy(module)
    assert all(type(part._parameters) is Theirs for part in module.modules())


@pytest.mark.parametrize("name", OTHERS)
def test_a_weight_is_released(name):
    make, names = MODULES[name]
    module = make()
    for n in names:
        owner, leaf = owner_of(module, n)
        weight = getattr(owner, leaf).detach().clone()
        delattr(owner, leaf)
        setattr(owner, leaf, torch.nn.Parameter(weight))
    assert_kept(module, [])
    module.bfloat16().to("meta").to_empty(device="cpu")
    assert_kept(module, [])


def test_a_loop_is_that_of_a_dict_where_nothing_is_kept():
    module = treated(torch.nn.Linear(8, 8), "weight")
    del module.weight
    assert type(module._parameters.items()) is type({}.items())
