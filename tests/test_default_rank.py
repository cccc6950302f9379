"""The rank of a step where none is given: it fits every size, and is bounded."""

import copy
import math
import pickle

import geoopt
import numpy as np
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    diagnose,
)
from geoopt_projunn.nn import BlockOrthogonalConv1d, OrthogonalConv1d, OrthogonalLinear

SHAPES = [(n, n) for n in (1, 2, 3, 4, 15, 16, 40)] + [(40, 1), (2, 40), (40, 12), (5, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_it_is_the_highest_rank_of_small_matrices_and_bounded(shape, blocks):
    n, p = max(shape), min(shape)
    manifold = LowRankStiefel(blocks=blocks)
    rank = manifold.rank(manifold.random(blocks * shape[0], shape[1]))
    highest = min(p, n // 2)
    assert rank == (min(highest, 8) or None)
    if shape[0] == shape[1]:
        assert LowRankUnitary(blocks=blocks).rank(torch.empty(blocks * n, n)) == rank


@pytest.mark.parametrize("k", [1, 5, None])
def test_a_rank_that_is_given_stays(k):
    manifold = LowRankUnitary(k)
    assert manifold.k == manifold.rank(torch.empty(64, 64)) == k


@pytest.mark.parametrize("kind", [ProjUNNRiemannianSGD, ProjUNNRiemannianAdam])
def test_one_manifold_serves_matrices_of_several_sizes(kind):
    shared, sizes = LowRankUnitary(), (2, 6, 20)
    params = [geoopt.ManifoldParameter(shared.random(n, n), manifold=shared) for n in sizes]
    alone = [
        geoopt.ManifoldParameter(p.detach().clone(), manifold=LowRankUnitary(min(8, n // 2)))
        for p, n in zip(params, sizes, strict=True)
    ]
    optimizers = kind(params, lr=0.1), kind(alone, lr=0.1)
    for _ in range(3):
        for p, q in zip(params, alone, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("shape", [(6, 6), (20, 20)])
def test_geoopts_contract_takes_the_same_rank(shape):
    manifold, explicit = LowRankUnitary(), LowRankUnitary(min(8, shape[0] // 2))
    x, u = manifold.random(*shape), torch.randn(shape)
    tangent = manifold.egrad2rgrad(x, u)
    assert torch.equal(tangent, explicit.egrad2rgrad(x, u))
    assert torch.equal(manifold.retr(x, tangent), explicit.retr(x, tangent))
    assert torch.equal(
        manifold.transp_follow_retr(x, tangent, tangent),
        explicit.transp_follow_retr(x, tangent, tangent),
    )


@pytest.mark.parametrize("normalize", [None, "angle"])
def test_a_matrix_of_one_row_is_stepped_whole(normalize):
    """It has no plane; a phase turns all the same."""
    manifold = LowRankUnitary()
    phase = geoopt.ManifoldParameter(torch.ones(1, 1, dtype=torch.complex128), manifold=manifold)
    optimizer = ProjUNNRiemannianSGD([phase], lr=0.3, normalize=normalize)
    phase.grad = torch.full((1, 1), 1j, dtype=torch.complex128)
    optimizer.step()
    assert float(phase.detach().angle()) == pytest.approx(-0.3)


def test_layers_say_the_rank_of_their_own_matrices():
    assert "k=8, retraction" in repr(OrthogonalLinear(64, 32))
    assert "k=3, retraction" in repr(OrthogonalLinear(7, 6))
    assert "k=2, retraction" in repr(BlockOrthogonalConv1d(4, 4, 3))
    # Of one channel: there k = 1 would be too high.
    assert "k=None, retraction" in repr(OrthogonalConv1d(1, 1, 8))


def test_a_diagnosis_says_the_rank_of_each_matrix():
    model = torch.nn.Sequential(OrthogonalLinear(40, 40), OrthogonalLinear(40, 3))
    model(torch.randn(16, 40)).pow(4).sum().backward()
    assert [one.k for one in diagnose(model)] == [8, 3]
    assert "auto" not in repr(diagnose(model))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_still_takes_it_from_the_size(clone):
    manifold = clone(LowRankUnitary())
    assert manifold == LowRankUnitary() != LowRankUnitary(8)
    assert hash(manifold) == hash(LowRankUnitary())


def test_a_layer_prints_after_its_matrix_was_flattened():
    """As FullyShardedDataParallel leaves it."""
    layer = OrthogonalLinear(7, 6)
    layer.weight.data = layer.weight.data.flatten()
    assert "k=auto, retraction" in repr(layer)


def test_integers_of_numpy_are_cut_to_what_a_shape_allows():
    given = BlockOrthogonalConv1d(4, 4, 3, k=np.int64(20))
    assert given.weight.manifold == BlockOrthogonalConv1d(4, 4, 3, k=20).weight.manifold


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("k", ["auto", None])
def test_a_diagnosis_of_a_matrix_of_one_row_tells_how_far_its_phase_turns(k, dtype):
    model = torch.nn.Module()
    model.phase = geoopt.ManifoldParameter(
        torch.ones(1, 1, dtype=dtype), manifold=LowRankUnitary(k)
    )
    model.phase.grad = torch.full_like(model.phase, 0.5j if dtype.is_complex else 0.5)
    (one,) = diagnose(model, lr=0.2)
    assert (one.k, one.k_for_half) == (None, None)
    start = model.phase.detach().clone()
    ProjUNNRiemannianSGD([model.phase], lr=0.2).step()
    turned = float(model.phase.detach().sub(start).abs())
    if dtype.is_complex:
        assert one.angle == pytest.approx(turned, rel=1e-2)
    else:
        # A real one has nowhere to turn.
        assert turned == 0
        assert math.isnan(one.angle)


@pytest.mark.parametrize("k", ["8", "Auto", 2.0, True, np.array([1, 2])])
def test_other_words_are_no_rank(k):
    with pytest.raises(
        TypeError,
        match=r"`k` must be an integer, got .*; use k=None for full rank, or k=\"auto\" for one",
    ):
        LowRankUnitary(k)
