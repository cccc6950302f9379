"""Error feedback: what a step has not carried stays in the buffer."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.linalg.dense import skewh

from ._helpers import (
    RETRACTIONS,
    SKETCHES,
    Procrustes,
    assert_within,
    bystander,
    eps,
    feed,
    gradients,
    near_identity,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
each_sketch = pytest.mark.parametrize("sketch", SKETCHES)


def carried(p, direction, counter):
    """Return, by dense algebra, the part of a direction that step number ``counter`` follows."""
    x = p.detach()
    sketched = p.manifold.sketch_direction(
        x[None], direction[None], torch.tensor([counter], dtype=torch.int64)
    )
    rows = torch.eye(len(x), dtype=x.dtype) if sketched.rows is None else sketched.rows[0]
    return rows.mH @ skewh(sketched.core[0]) @ rows @ x


@pytest.mark.parametrize("k", [1, 2, None])
@each_sketch
@each_dtype
def test_the_buffer_keeps_the_stated_shares(dtype, sketch, k):
    p = unitary_parameter(8, 8, dtype=dtype, k=k, sketch=sketch)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.6, error_feedback=0.95)
    buffer = torch.zeros_like(p.detach())
    for counter, grad in enumerate(gradients(p, 4)):
        direction = buffer + grad
        part = carried(p, direction, counter)
        buffer = 0.95 * (direction - part) + 0.6 * part
        feed(optimizer, p, [grad])
        assert_within(optimizer.state[p]["feedback_buffer"], buffer, 1e3 * eps(dtype))


@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_dtype
def test_equal_shares_are_the_heavy_ball(dtype, retraction, k):
    problem, start = Procrustes(8, 8, dtype=dtype), rotation(8, 8, dtype=dtype)
    ends = []
    for feedback in (None, 0.9):
        p = on_manifold(start, k=k, retraction=retraction)
        optimizer = ProjUNNRiemannianSGD([p], lr=0.01, momentum=0.9, error_feedback=feedback)
        for _ in range(20):
            optimizer.zero_grad()
            problem.loss(p).backward()
            optimizer.step()
        ends.append(p.detach())
    assert torch.linalg.matrix_norm(ends[0] - start) > 0.1
    # The test vectors of a sketch magnify the rounding by which the two differ.
    assert_within(ends[0], ends[1], 1e6 * eps(dtype))


@each_dtype
def test_without_momentum_full_rank_steps_are_those_of_plain_descent(dtype):
    """All of the tangent part is carried, and what stays of the normal part moves nothing."""
    start = rotation(6, 6, dtype=dtype)
    plain, with_feedback = on_manifold(start, k=None), on_manifold(start, k=None)
    first = gradients(plain, 1)
    for p, options in ((plain, {}), (with_feedback, {"error_feedback": 0.9})):
        feed(ProjUNNRiemannianSGD([p], lr=0.1, **options), p, first)
    assert_within(plain, with_feedback, 20 * eps(dtype))


@pytest.mark.parametrize("k", [1, 2])
@each_dtype
def test_small_steps_follow_the_full_rank_trajectory(dtype, k):
    """Where the normal part is small, small steps lose nothing of a gradient, at any rank."""
    start, target = torch.eye(12, dtype=dtype), near_identity(12, dtype, angle=0.3)
    ends = {}
    for name, rank, feedback in (("full", None, None), ("plain", k, None), ("fed", k, 0.999)):
        p = on_manifold(start, k=rank)
        optimizer = ProjUNNRiemannianSGD([p], lr=0.01, error_feedback=feedback)
        for _ in range(100):
            p.grad = p.detach() - target
            optimizer.step()
        ends[name] = p.detach()
    travelled = torch.linalg.matrix_norm(ends["full"] - start)
    assert travelled > 0.3
    assert torch.linalg.matrix_norm(ends["fed"] - ends["full"]) < 0.1 * travelled
    assert torch.linalg.matrix_norm(ends["plain"] - ends["full"]) > 0.3 * travelled


def test_it_averages_the_noise_of_small_batches():
    """On noisy batches rank 1 gets further with feedback than the heavy ball, tuned alike."""
    n, batch, steps = 32, 8, 250
    torch.manual_seed(0)
    target, start = rotation(n, n), rotation(n, n)
    root = rotation(n, n) * torch.logspace(0, -1, n)

    def residual(feedback, lr):
        draws = torch.Generator().manual_seed(1)
        p = on_manifold(start, k=1)
        optimizer = ProjUNNRiemannianSGD([p], lr=lr, momentum=0.9, error_feedback=feedback)
        for _ in range(steps):
            x = root @ torch.randn(n, batch, generator=draws)
            noise = 0.1 * torch.randn(n, batch, generator=draws)
            p.grad = ((p.detach() - target) @ x + noise) @ x.mT / batch
            optimizer.step()
        assert orthogonality_error(p) < 1e-4
        return float(torch.linalg.matrix_norm((p.detach() - target) @ root))

    rates = (0.03, 0.1, 0.3)
    assert min(residual(0.99, lr) for lr in rates) < 0.7 * min(residual(None, lr) for lr in rates)


def test_a_change_of_the_option_starts_its_buffer_afresh():
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    feed(optimizer, p, gradients(p, 2))
    optimizer.param_groups[0]["error_feedback"] = 0.5
    feed(optimizer, p, gradients(p, 1))
    assert "feedback_buffer" in optimizer.state[p]
    assert orthogonality_error(p) < 1e-5


def test_plain_parameters_take_torchs_step():
    ours, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = ProjUNNRiemannianSGD([ours, bystander()], lr=0.1, momentum=0.9, error_feedback=0.5)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for grad in (torch.randn(3), torch.randn(3)):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)
