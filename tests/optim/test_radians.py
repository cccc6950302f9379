"""Steps in radians: what ``lr`` means with ``normalize``."""

import copy
import math

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from tests._asserts import assert_within

from ._helpers import (
    RETRACTIONS,
    assert_same_bits,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)
from ._radians import angles, each_dtype, each_name, each_optimizer, each_sketch

pytestmark = pytest.mark.usefixtures("each_way")


each_retraction = pytest.mark.parametrize("retraction", RETRACTIONS)


def angles_of_a_step(kind, lr, normalize, *shape, scale=1.0, dtype=torch.float64, **manifold):
    p = unitary_parameter(*shape, dtype=dtype, **manifold)
    start = p.detach().clone()
    feed(kind([p], lr=lr, normalize=normalize), p, gradients(p, 1, scale))
    assert orthogonality_error(p) < 100 * shape[-1] * torch.finfo(dtype).eps
    return angles(start, p)


def root_mean_square(values, count):
    return values[..., :count].square().mean(-1).sqrt()


@each_sketch
@each_dtype
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("scale", [1e-8, 1e3])
def test_angle_is_the_root_mean_square_of_the_planes_of_a_step(scale, k, dtype, sketch):
    values = angles_of_a_step(
        ProjUNNRiemannianSGD, 0.5, "angle", 2, 16, 16, scale=scale, dtype=dtype, k=k, sketch=sketch
    )
    assert root_mean_square(values, 2 * k).sub(0.5).abs().max() < 1e-4
    assert values[:, 2 * k :].max() < 1e-5


@each_sketch
@each_dtype
@pytest.mark.parametrize("scale", [1e-8, 1e3])
def test_spectral_turns_each_plane_of_a_step(scale, dtype, sketch):
    # Two planes whose angles in the direction do not differ much.
    values = angles_of_a_step(
        ProjUNNRiemannianAdam, 0.5, "spectral", 2, 16, 16, scale=scale, dtype=dtype, k=1,
        sketch=sketch,
    )  # fmt: skip
    assert values[:, :2].sub(0.5).abs().max() < 0.01
    assert values[:, 2:].max() < 1e-5


@pytest.mark.parametrize(
    ("retraction", "angle"), [("polar", math.atan(0.5)), ("cayley", 2 * math.atan(0.25))]
)
@each_sketch
@each_name
def test_the_other_retractions_turn_the_same_core(normalize, sketch, retraction, angle):
    values = angles_of_a_step(
        ProjUNNRiemannianSGD, 0.5, normalize, 16, 16, k=1, sketch=sketch, retraction=retraction
    )
    assert values[:2].sub(angle).abs().max() < 1e-6


@each_name
@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_full_rank_counts_all_planes(dtype, n, normalize):
    values = angles_of_a_step(ProjUNNRiemannianSGD, 0.5, normalize, n, n, dtype=dtype, k=None)
    planes = n if dtype.is_complex else n // 2 * 2
    if normalize == "angle":
        assert root_mean_square(values, planes).sub(0.5).abs() < 1e-6
    else:
        assert 0.495 < values.max() < 0.5 + 1e-6
    assert values[planes:].abs().sum() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_full_rank_of_rectangles_counts_the_planes_that_they_have(dtype):
    manifold = LowRankStiefel(None)
    p = geoopt.ManifoldParameter(manifold.random(10, 3, dtype=dtype), manifold=manifold)
    start, grad = p.detach().clone(), torch.randn(10, 3, dtype=dtype)
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize="angle"), p, [grad])
    generator = grad @ start.mH - start @ grad.mH
    generator *= 0.5 * math.sqrt(2 * 3) / torch.linalg.matrix_norm(generator)
    assert (p - torch.linalg.matrix_exp(-generator) @ start).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:With normalize")
@each_retraction
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_one_plane_stops_at_half_a_turn(dtype, retraction):
    """All of a rank-one gradient at k = 16 is in one plane, or for complex points in two."""
    p = on_manifold(torch.eye(40, dtype=dtype), k=16, retraction=retraction)
    grad = torch.zeros_like(p)
    grad[3, 5] = 1
    feed(ProjUNNRiemannianSGD([p], lr=1.0, normalize="angle"), p, [grad])
    expected = {
        "exponential": math.pi,
        "polar": math.atan(math.pi),
        "cayley": 2 * math.atan(math.pi / 2),
    }
    values = angles(torch.eye(40, dtype=dtype), p)
    assert values[0] <= expected[retraction] + 1e-6
    assert values[0] > 0.99 * expected[retraction]
    assert orthogonality_error(p) < 1e-12


@each_name
@each_optimizer
@pytest.mark.parametrize("lr", [0.3, 3.0])
@pytest.mark.filterwarnings("ignore:With normalize")
def test_a_rate_in_a_tensor_takes_the_same_steps(kind, normalize, lr):
    p = unitary_parameter(2, 12, 12, dtype=torch.float64, k=3)
    q, grads = copy.deepcopy(p), gradients(p, 3)
    feed(kind([p], lr=lr, normalize=normalize), p, grads)
    feed(kind([q], lr=torch.tensor(lr, dtype=torch.float64), normalize=normalize), q, grads)
    assert (p - q).abs().max() < 1e-12


@each_optimizer
def test_a_group_may_step_in_radians_beside_others(kind):
    params = [unitary_parameter(8, 8) for _ in range(2)] + [torch.nn.Parameter(torch.randn(4))]
    alone = copy.deepcopy(params)
    optimizer = kind(
        [{"params": params[:1], "lr": 0.4, "normalize": "angle"}, {"params": params[1:]}]
    )
    others = kind(alone[1:])
    start = params[0].detach().clone()
    for p, q in zip(params, alone, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    others.step()
    assert root_mean_square(angles(start, params[0]), 2).sub(0.4).abs() < 1e-4
    for p, q in zip(params[1:], alone[1:], strict=True):
        assert_same_bits(p.detach(), q.detach())


def test_ascending_turns_the_other_way():
    p = unitary_parameter(8, 8, dtype=torch.float64)
    start, (grad,) = p.detach().clone(), gradients(p, 1)
    q = copy.deepcopy(p)
    feed(ProjUNNRiemannianSGD([p], lr=0.4, normalize="angle"), p, [grad])
    feed(ProjUNNRiemannianSGD([q], lr=0.4, normalize="angle", maximize=True), q, [grad])
    descended, ascended = p.detach() @ start.mT, q.detach() @ start.mT
    assert (descended - ascended.mT).abs().max() < 1e-12
    assert ((p - q) * grad).sum() < 0


def test_regression_ends_lower_than_by_multiples_of_the_gradient():
    """One angle, decaying to zero, against the best of three rates; mean of eight starts."""
    n, steps = 24, 80
    target, start = rotation(8, n, n), rotation(8, n, n)
    root = rotation(n, n) * torch.logspace(0, -1, n)

    def loss(lr, normalize):
        draws, p = torch.Generator().manual_seed(1), on_manifold(start, k=4)
        optimizer = ProjUNNRiemannianSGD(
            [p], lr=lr, momentum=0.9, nesterov=True, normalize=normalize
        )
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            x = root @ torch.randn(n, 32, generator=draws)
            p.grad = (p.detach() - target) @ x @ x.mT / 32
            optimizer.step()
        return float(((p.detach() - target) @ root).square().sum((-2, -1)).log().mean().exp())

    best = min(loss(lr, None) for lr in (0.1, 0.3, 1.0))
    assert 5 * loss(0.4, "angle") < best
    assert 2 * loss(0.4, "spectral") < best


@each_name
@pytest.mark.parametrize(
    "options", [{}, {"second_moment": "scalar", "betas": (0.9, 0.5)}, {"amsgrad": True}]
)
def test_adam_with_one_moment_for_a_matrix_is_then_momentum(options, normalize):
    """Only the direction of a matrix counts, and its second moment is one number."""
    p, q = (unitary_parameter(2, 12, 12, k=2, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        q.copy_(p)
    start, grads = p.detach().clone(), gradients(p, 6)
    feed(ProjUNNRiemannianAdam([p], lr=0.1, normalize=normalize, **options), p, grads)
    feed(ProjUNNRiemannianSGD([q], lr=0.1, normalize=normalize, momentum=0.9), q, grads)
    assert_within(p.detach(), q.detach(), 1e-6)
    assert (p - start).abs().max() > 0.1
