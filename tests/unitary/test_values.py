"""The value that a manifold is."""

import copy
import pickle

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal
from tests._matrices import unitary


def variants():
    return [
        LowRankUnitary(),
        LowRankUnitary(1),
        LowRankUnitary(2),
        LowRankUnitary(None),
        LowRankUnitary(1, retraction="polar"),
        LowRankUnitary(1, sketch="lsi"),
        LowRankUnitary(1, sweep=0),
    ]


def test_the_defaults_are_tangent_steps_along_geodesics():
    manifold = LowRankUnitary()
    assert manifold == LowRankUnitary("auto", retraction="exponential", sketch="tangent", sweep=1)
    assert (manifold.name, manifold.ndim) == ("LowRankUnitary", 2)


def test_manifolds_are_equal_by_value_and_hash_alike():
    for i, one in enumerate(variants()):
        for j, other in enumerate(variants()):
            assert (one == other) == (i == j)
            assert (one != other) == (i != j)
            assert i != j or hash(one) == hash(other)
    assert len({*variants(), *variants()}) == len(variants())
    assert LowRankUnitary() != geoopt.Euclidean()


def test_the_representation_shows_rank_retraction_and_sketch():
    assert [repr(manifold) for manifold in variants()] == [
        "LowRankUnitary(k=auto, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=2, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=None, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=polar, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=lsi) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=tangent, sweep=0) manifold",
    ]


@pytest.mark.parametrize("manifold", variants(), ids=repr)
def test_copies_of_a_manifold_are_equal_to_it(manifold):
    for other in (
        copy.copy(manifold),
        copy.deepcopy(manifold),
        pickle.loads(pickle.dumps(manifold)),
    ):
        assert other == manifold
        x, u = unitary(4, 4), torch.randn(4, 4, dtype=torch.float64)
        assert_bit_equal(other.retr(x, u), manifold.retr(x, u))


def test_a_manifold_holds_no_tensors():
    # A parameter's manifold is no submodule: its tensors would be neither moved nor saved.
    manifold = LowRankUnitary()
    assert not list(manifold.parameters())
    assert not list(manifold.buffers())
    assert manifold.device is None
    assert manifold.dtype is None
