"""A parameter without a gradient waits, and begins when it has one."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_without_a_gradient_stays_and_has_no_state(kind):
    moved, still = unitary_parameter(6, 6), unitary_parameter(6, 6)
    before = still.detach().clone()
    optimizer = kind([moved, still], lr=0.1)
    feed(optimizer, moved, gradients(moved, 3))
    assert_same_bits(still, before)
    assert still not in optimizer.state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_that_comes_late_starts_its_own_count(kind):
    early, late = (unitary_parameter(6, 6, dtype=torch.float64) for _ in range(2))
    alone = on_manifold(late.detach())
    optimizer = kind([early, late], lr=0.1)
    feed(optimizer, early, gradients(early, 3))
    grads = gradients(late, 4)
    feed(optimizer, late, grads[:2])
    early.grad = None
    feed(optimizer, late, grads[2:])
    other = kind([alone], lr=0.1)
    feed(other, alone, grads)
    assert optimizer.state[early]["step"].item() == 5
    assert optimizer.state[late]["step"].item() == 4
    assert_within(late, alone, 1e-13)


@pytest.mark.parametrize("momentum", [(0.0, 0.9), (0.9, 0.0)])
def test_a_late_parameter_starts_under_a_momentum_that_has_changed(momentum):
    early, late = (unitary_parameter(6, 6, dtype=torch.float64) for _ in range(2))
    alone = on_manifold(late.detach())
    optimizer = ProjUNNRiemannianSGD([early, late], lr=0.1, momentum=momentum[0])
    feed(optimizer, early, gradients(early, 2))
    optimizer.param_groups[0]["momentum"] = momentum[1]
    grads = gradients(late, 3)
    feed(optimizer, late, grads)
    feed(ProjUNNRiemannianSGD([alone], lr=0.1, momentum=momentum[1]), alone, grads)
    assert_within(late, alone, 1e-13)
