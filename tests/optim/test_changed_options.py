"""Options that change between steps act from the next one on, or are refused before it."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    Snapshot,
    assert_same_bits,
    assert_same_state,
    assert_within,
    eps,
    feed,
    gradients,
    unitary_parameter,
)
from ._textbook import TEXTBOOK


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("change", [(0.0, 0.9), (0.9, 0.0), (0.0, 0.9, 0.0, 0.5)])
def test_momentum_may_change_between_steps(change):
    p = unitary_parameter(6, 6, dtype=torch.float64, k=None, sweep=0)
    x = p.detach().clone()
    plain = torch.nn.Parameter(torch.zeros_like(x))
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    reference = torch.optim.SGD([plain], lr=1.0)
    for momentum in change:
        optimizer.param_groups[0]["momentum"] = momentum
        reference.param_groups[0]["momentum"] = momentum
        for grad in gradients(p, 2):
            feed(optimizer, p, [grad])
            before = plain.detach().clone()
            feed(reference, plain, [grad])
            d = before - plain.detach()
            x = TEXTBOOK["exponential"](x, -0.1 * (d - x @ d.mH @ x) / 2)
    assert_within(p, x, 100 * eps(torch.float64))


LATER = [
    (ProjUNNRiemannianAdam, {"foreach": True, "lr": torch.tensor(0.1)}, "with `foreach=True`"),
    (
        ProjUNNRiemannianAdam,
        {"foreach": True, "betas": (torch.tensor(0.5), torch.tensor(0.9))},
        "with `foreach=True`",
    ),
    (ProjUNNRiemannianAdam, {"capturable": True}, "`capturable` needs plain parameters on a GPU"),
    (
        ProjUNNRiemannianAdam,
        {"betas": (0.5, torch.empty((), device="meta"))},
        "`betas` must have a value",
    ),
    (ProjUNNRiemannianAdam, {"eps": torch.empty((), device="meta")}, "`eps` must have a value"),
    (ProjUNNRiemannianSGD, {"momentum": torch.empty((), device="meta")}, "`momentum` must have"),
]


@pytest.mark.parametrize(("kind", "changes", "match"), LATER)
def test_an_option_that_becomes_unsuitable_is_refused_before_anything_moves(kind, changes, match):
    params = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(3))]
    params.append(unitary_parameter(4, 4))
    optimizer = kind([{"params": [p]} for p in params])
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.param_groups[1].update(changes)
    values = [p.detach().clone() for p in params]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    for p, value in zip(params, values, strict=True):
        assert_same_bits(p, value)
    for key, entries in optimizer.state_dict()["state"].items():
        assert_same_state(entries, state[key])


def test_a_sparse_gradient_of_fused_steps_is_refused_before_anything_moves():
    first, weight = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ProjUNNRiemannianSGD(
        [{"params": [first, unitary_parameter(4, 4)]}, {"params": [weight], "fused": True}]
    )
    first.grad, weight.grad = torch.ones(3), torch.ones(4, 3).to_sparse()
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match="must be dense with `fused=True`, got a sparse gradient"):
        optimizer.step()
    before.assert_unchanged()


def test_amsgrad_may_be_switched_on_for_every_kind_of_parameter():
    sphere = geoopt.Sphere()
    params = [torch.nn.Parameter(torch.randn(3)), unitary_parameter(4, 4)]
    params.append(geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere))
    optimizer = ProjUNNRiemannianAdam(params, lr=0.1, second_moment="elementwise")
    for amsgrad in (False, True, True):
        optimizer.param_groups[0]["amsgrad"] = amsgrad
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in params:
        assert (optimizer.state[p]["max_exp_avg_sq"] >= optimizer.state[p]["exp_avg_sq"]).all()
