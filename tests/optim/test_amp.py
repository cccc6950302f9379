"""Mixed precision: the scaler, and steps inside autocast."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    RETRACTIONS,
    SKETCHES,
    Procrustes,
    Snapshot,
    assert_same_bits,
    assert_same_state,
    feed,
    gradients,
    near_identity,
    on_manifold,
    unitary_parameter,
)


def loss_of(p, plain):
    return (p @ p).square().sum() + (p.sum() * plain).square().sum()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_scaled_gradient_never_reaches_a_step(kind):
    """Powers of two scale exactly: the run with a scaler is the run without."""
    p, plain = unitary_parameter(6, 6), torch.nn.Parameter(torch.ones(3))
    q, other = on_manifold(p.detach()), torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    left, right = kind([p, plain], lr=0.01), kind([q, other], lr=0.01)
    for _ in range(4):
        left.zero_grad()
        scaler.scale(loss_of(p, plain)).backward()
        scaler.step(left)
        scaler.update()
        right.zero_grad()
        loss_of(q, other).backward()
        right.step()
    assert_same_bits(p, q)
    assert_same_bits(plain, other)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_overflow_makes_the_scaler_skip_the_step_of_everything(kind):
    p, plain = unitary_parameter(6, 6), torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = kind([p, plain], lr=0.01)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale(factor * loss_of(p, plain)).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before = Snapshot(optimizer)
    step(1e38)
    before_grads = before.grads
    before.grads = [p.grad.clone() for p in before.params]
    before.assert_unchanged()
    assert not torch.equal(before_grads[0], before.grads[0])
    assert scaler.get_scale() == 2.0**9
    assert optimizer.skipped_steps == 0
    step(1.0)
    assert not torch.equal(p, before.values[0])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_unscaled_gradients_can_be_clipped(kind):
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    left, right = kind([p], lr=0.01), kind([q], lr=0.01)
    for parameter, optimizer in ((p, left), (q, right)):
        loss = loss_of(parameter, torch.ones(3))
        (scaler.scale(loss) if optimizer is left else loss).backward()
        if optimizer is left:
            scaler.unscale_(left)
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    scaler.step(left)
    right.step()
    assert_same_bits(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {"momentum": 0.9}),
        (ProjUNNRiemannianAdam, {"stabilize": 2, "second_moment": "elementwise"}),
        (ProjUNNRiemannianAdam, {"second_moment": "scalar"}),
    ],
)
def test_a_step_inside_autocast_is_the_step_outside(kind, options, retraction, sketch, k, dtype):
    inside = unitary_parameter(2, 6, 6, dtype=dtype, k=k, sketch=sketch, retraction=retraction)
    outside = on_manifold(inside.detach(), k=k, sketch=sketch, retraction=retraction)
    plain, other = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    left = kind([inside, plain], lr=0.05, **options)
    right = kind([outside, other], lr=0.05, **options)
    plain.grad, other.grad = torch.ones(3, 3), torch.ones(3, 3)
    grads = gradients(inside, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feed(left, inside, grads)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    feed(right, outside, grads)
    assert_same_bits(inside, outside)
    assert_same_state(left.state[inside], right.state[outside])
    assert_same_bits(plain, other)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_closure_inside_autocast_keeps_autocast(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.01)
    seen = []

    def closure():
        product = p @ p
        seen.append(product.dtype)
        optimizer.zero_grad()
        loss = product.float().square().sum()
        loss.backward()
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(closure)
    assert seen == [torch.bfloat16]
    assert p.dtype == torch.float32


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_model_in_autocast_is_trained(kind):
    problem = Procrustes(8, 8, dtype=torch.float32, target=near_identity(8, torch.float32))
    p = on_manifold(torch.eye(8), k=2)
    optimizer = kind([p], lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (p @ problem.a - problem.b).float().square().sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 5
    assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-6)
