"""Keys of wrappers and schedules are kept in groups, and misspelt ones are told."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import OPTIMIZERS, assert_same_bits, feed, gradients, on_manifold, unitary_parameter


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "key", ["rho", "adaptive", "lr_scale", "lr_mult", "weight_decay_scale", "layer", "swa_lr", "k"]
)
def test_keys_of_wrappers_and_schedules_are_kept(key, kind):
    optimizer = kind([{"params": [unitary_parameter(4, 4)], key: 0.5}])
    optimizer.add_param_group({"params": [unitary_parameter(4, 4)], key: 0.25})
    assert [group[key] for group in optimizer.param_groups] == [0.5, 0.25]
    for group in optimizer.param_groups:
        feed(optimizer, group["params"][0], [torch.randn(4, 4)])
    other = kind([{"params": group["params"]} for group in optimizer.param_groups])
    other.load_state_dict(optimizer.state_dict())
    assert [group[key] for group in other.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("kind", "key", "meant"),
    [
        (ProjUNNRiemannianSGD, "momentumm", "momentum"),
        (ProjUNNRiemannianSGD, "nestrov", "nesterov"),
        (ProjUNNRiemannianSGD, "dampning", "dampening"),
        (ProjUNNRiemannianAdam, "weight_decey", "weight_decay"),
        (ProjUNNRiemannianAdam, "ams_grad", "amsgrad"),
        (ProjUNNRiemannianAdam, "beta", "betas"),
        (ProjUNNRiemannianAdam, "stabilise", "stabilize"),
    ],
)
def test_a_key_that_looks_misspelt_is_kept_with_a_warning(kind, key, meant):
    with pytest.warns(UserWarning, match=f"`{key}` of a .*if `{meant}` is meant") as record:
        optimizer = kind([{"params": [unitary_parameter(4, 4)], key: 0.5}])
    assert record[0].filename == __file__
    assert optimizer.param_groups[0][key] == 0.5


def test_sharpness_aware_wrappers_work():
    """Such wrappers put a key of their own into groups and a tensor into the state."""
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    base = ProjUNNRiemannianSGD([{"params": [p], "rho": 0.05}], lr=0.01, momentum=0.9)
    bare = ProjUNNRiemannianSGD([q], lr=0.01, momentum=0.9)
    for _ in range(3):
        (grad,) = gradients(p, 1)
        with torch.no_grad():
            base.state[p]["old_p"] = p.detach().clone()
            p.add_(grad, alpha=base.param_groups[0]["rho"] / grad.norm())
            p.copy_(base.state[p]["old_p"])
        feed(base, p, [grad])
        feed(bare, q, [grad])
    assert_same_bits(p, q)
    assert "old_p" in base.state[p]
