"""Weight decay is torch's on plain parameters, and does nothing to unitary matrices."""

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam

from ._helpers import (
    OPTIMIZERS,
    SKETCHES,
    assert_same_bits,
    assert_same_state,
    assert_within,
    feed,
    gradients,
    on_manifold,
    step_alike,
    unitary_parameter,
)
from .test_euclidean import plain_parameters


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_weight_decay_has_no_effect(sketch, k, kind):
    decayed = unitary_parameter(6, 6, k=k, sketch=sketch)
    free = on_manifold(decayed.detach(), k=k, sketch=sketch)
    grads = gradients(free, 5)
    feed(kind([decayed], lr=0.01, weight_decay=0.5), decayed, grads)
    feed(kind([free], lr=0.01), free, grads)
    assert_same_bits(decayed, free)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}])
def test_decoupled_weight_decay_of_plain_parameters_is_that_of_adamw(options):
    ours, theirs = plain_parameters(), plain_parameters()
    optimizer = ProjUNNRiemannianAdam(
        [*ours, unitary_parameter(4, 4)],
        lr=0.1,
        weight_decay=0.3,
        decoupled_weight_decay=True,
        **options,
    )
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.3, **options)
    pairs = list(zip(ours, theirs, strict=True))
    step_alike(pairs, [optimizer, reference])
    for p, q in pairs:
        assert_same_bits(p, q)
        assert_same_state(optimizer.state[p], reference.state[q])


def test_decoupled_weight_decay_has_no_effect_on_unitary_matrices():
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    decayed = ProjUNNRiemannianAdam([p], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True)
    plain = ProjUNNRiemannianAdam([q], lr=0.1)
    step_alike([(p, q)], [decayed, plain])
    assert_same_bits(p, q)


def test_decoupled_weight_decay_on_the_euclidean_manifold_is_that_of_adamw():
    start = torch.randn(5, 3, dtype=torch.float64)
    p = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Euclidean(ndim=0))
    q = torch.nn.Parameter(start.clone())
    ours = ProjUNNRiemannianAdam(
        [p, unitary_parameter(4, 4)], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True
    )
    theirs = torch.optim.AdamW([q], lr=0.1, weight_decay=0.3)
    step_alike([(p, q)], [ours, theirs])
    assert_within(p, q, 1e-12)


@pytest.mark.parametrize("manifold", [geoopt.Sphere(), geoopt.PoincareBall(), geoopt.Stiefel()])
def test_decoupled_weight_decay_stays_on_geoopts_manifolds(manifold):
    start = manifold.random(4, 3)
    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    undecayed = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    options = {"lr": 0.05, "decoupled_weight_decay": True}
    ours = ProjUNNRiemannianAdam([p, unitary_parameter(4, 4)], weight_decay=0.3, **options)
    other = ProjUNNRiemannianAdam([undecayed, unitary_parameter(4, 4)], **options)
    step_alike([(p, undecayed)], [ours, other])
    assert manifold.check_point_on_manifold(p, atol=1e-5)
    # Only of the ball does the norm of a point change.
    if isinstance(manifold, geoopt.PoincareBall):
        assert p.norm() < undecayed.norm()
    else:
        assert_within(p, undecayed, 1e-6)
