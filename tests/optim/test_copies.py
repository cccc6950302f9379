"""Copies of an optimizer and its parameters go on by themselves."""

import copy
import pickle

import pytest

from ._helpers import OPTIMIZERS, Snapshot, assert_same_bits, bystander
from ._runs import assert_same_run, each_setting, mixed_parameters, run


@each_setting
def test_a_deepcopy_goes_on_alike_and_apart(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, **options)
    run(optimizer, params, range(3))
    other_params, other = copy.deepcopy((params, optimizer))
    assert other.param_groups[0]["params"][0] is other_params[0]
    before = Snapshot(other)
    run(optimizer, params, range(3, 6))
    for p, q in zip(before.values, other_params, strict=True):
        assert_same_bits(p, q)
    run(other, other_params, range(3, 6))
    assert_same_run(optimizer, params, other, other_params)


@each_setting
def test_a_pickled_optimizer_goes_on_alike(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, **options)
    run(optimizer, params, range(3))
    other_params, other = pickle.loads(pickle.dumps((params, optimizer)))
    for opt, ps in ((optimizer, params), (other, other_params)):
        run(opt, ps, range(3, 6))
    assert_same_run(optimizer, params, other, other_params)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_copy_keeps_its_default_for_stabilize(kind, copier):
    other = copier(kind([bystander()], stabilize=3))
    other.add_param_group({"params": [bystander()]})
    assert [group["stabilize"] for group in other.param_groups] == [3, 3]
