"""Momentum of generators: what it adds up, what it refuses, and where it helps."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, ProjUNNRiemannianSGD

from ._helpers import (
    Snapshot,
    assert_same_bits,
    assert_within,
    eps,
    exp_skewh,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)
from .test_costs import assert_linear_in_k_n_squared, assert_never_waits, ready

pytestmark = pytest.mark.usefixtures("each_way")
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"dampening": 0.5}, {"maximize": True}]
)
@each_dtype
def test_full_rank_steps_are_those_of_the_textbook(dtype, options):
    """The heavy ball of generators: B <- mu B + G and x <- exp(-lr B) x."""
    p = unitary_parameter(2, 6, 6, dtype=dtype, k=None)
    x, total, lr, mu = p.detach().clone(), torch.zeros_like(p.detach()), 0.1, 0.9
    optimizer = ProjUNNRiemannianSGD([p], lr, mu, momentum_space="tangent", **options)
    for step, grad in enumerate(gradients(p, 4)):
        feed(optimizer, p, [grad])
        generator = (grad @ x.mH - x @ grad.mH) / 2
        total = mu * total + generator * (1 - options.get("dampening", 0.0) * (step > 0))
        follow = generator + mu * total if options.get("nesterov") else total
        x = exp_skewh((lr if options.get("maximize") else -lr) * follow) @ x
    assert_within(p, x, 1e-12)
    assert_within(optimizer.state[p]["generator_buffer"], total, 1e-13)


@pytest.mark.parametrize("k", [1, 3])
@each_dtype
def test_the_buffer_adds_up_what_sketches_keep(dtype, k):
    p = unitary_parameter(2, 12, 12, dtype=dtype, k=k, sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], 0.1, 0.9, momentum_space="tangent")
    total = torch.zeros_like(p.detach())
    for step, grad in enumerate(gradients(p, 3)):
        counter = torch.full((2,), step)
        rows, core = p.manifold.sketch_direction(p.detach(), grad, counter)
        total = 0.9 * total + rows.mH @ core @ rows
        feed(optimizer, p, [grad])
    buffer = optimizer.state[p]["generator_buffer"]
    assert_within(buffer, total, 1e-12)
    assert_within(buffer, -buffer.mH, 1e-14)
    assert orthogonality_error(p) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_without_momentum_there_is_no_buffer_and_no_difference(dtype):
    p = unitary_parameter(8, 8, dtype=dtype)
    q, grads = on_manifold(p.detach()), gradients(p, 3)
    optimizer = ProjUNNRiemannianSGD([p], 0.1, momentum_space="tangent")
    feed(optimizer, p, grads)
    feed(ProjUNNRiemannianSGD([q], 0.1), q, grads)
    assert_same_bits(p.detach(), q.detach())
    assert optimizer.state[p].keys() == {"step", "skipped"}


@pytest.mark.parametrize(("space", "least", "most"), [("ambient", 0.1, 9), ("tangent", 0, 1e-10)])
def test_a_normal_part_never_enters(space, least, most):
    """It piles up in an ambient buffer and becomes a false tangent part as x turns."""
    start, target = (rotation(16, 16, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(16, 16, dtype=torch.float64)
    ends = []
    for size in (0.0, 10.0):
        p = on_manifold(start, k=None)
        optimizer = ProjUNNRiemannianSGD([p], 0.05, 0.9, momentum_space=space)
        for _ in range(10):
            normal = size * (noise + noise.mT) @ p.detach()
            feed(optimizer, p, [p.detach() - target + normal])
        ends.append(p.detach())
    assert least <= torch.linalg.matrix_norm(ends[1] - ends[0]) < most


@pytest.mark.parametrize("normalize", ["angle", "spectral"])
def test_it_steps_in_radians(normalize):
    p = unitary_parameter(16, 16, dtype=torch.float64, k=2)
    optimizer = ProjUNNRiemannianSGD(
        [p], 0.3, 0.9, nesterov=True, momentum_space="tangent", normalize=normalize
    )
    feed(optimizer, p, gradients(p, 2))
    start = p.detach().clone()
    feed(optimizer, p, gradients(p, 1))
    turned = torch.linalg.eigvals(p.detach() @ start.mT).angle().abs().sort().values[-4:]
    assert turned.square().mean().sqrt().sub(0.3).abs() < 3e-3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
def test_what_is_not_finite_changes_nothing(bad):
    p = unitary_parameter(2, 8, 8, k=2)
    optimizer = ProjUNNRiemannianSGD([p], 0.1, 0.9, momentum_space="tangent")
    feed(optimizer, p, gradients(p, 1))
    start, buffer = p.detach().clone(), optimizer.state[p]["generator_buffer"].clone()
    (grad,) = gradients(p, 1)
    grad[1, 2, 3] = bad
    feed(optimizer, p, [grad])
    assert_same_bits(p.detach()[1], start[1])
    assert_same_bits(optimizer.state[p]["generator_buffer"][1], buffer[1])
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("k", [1, 4])
def test_it_costs_a_constant_times_k_n_squared(k):
    options = {"momentum": 0.9, "momentum_space": "tangent"}
    assert_linear_in_k_n_squared(ProjUNNRiemannianSGD, options, k)


def test_nothing_waits_for_the_device():
    options = {"momentum": 0.9, "momentum_space": "tangent"}
    assert_never_waits(ready(ProjUNNRiemannianSGD, options, 3, 16, 16, k=2))


def test_changing_the_space_starts_afresh():
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    feed(optimizer, p, gradients(p, 2))
    optimizer.param_groups[0]["momentum_space"] = "tangent"
    feed(optimizer, p, gradients(p, 1))
    assert "generator_buffer" in optimizer.state[p]
    assert orthogonality_error(p) < 100 * eps(p.dtype)


@pytest.mark.parametrize(
    "changed", [{"momentum_space": "tangent"}, {"error_feedback": 0.5}], ids=str
)
def test_a_buffer_of_earlier_steps_does_not_come_back(changed):
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    feed(optimizer, p, gradients(p, 2))
    (group,) = optimizer.param_groups
    before = {name: group[name] for name in changed}
    group.update(changed)
    feed(optimizer, p, gradients(p, 1))
    group.update(before)
    q, grads = copy.deepcopy(p), gradients(p, 2)
    feed(optimizer, p, grads)
    feed(ProjUNNRiemannianSGD([q], lr=0.1, momentum=0.9), q, grads)
    assert_same_bits(p, q)


def test_rectangles_and_wrong_combinations_are_refused():
    manifold = LowRankStiefel(1)
    p = geoopt.ManifoldParameter(manifold.random(6, 3), manifold=manifold)
    p.grad = torch.randn(6, 3)
    optimizer = ProjUNNRiemannianSGD([p], 0.1, 0.9, momentum_space="tangent")
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"`momentum_space` must be \"ambient\".*\(6, 3\)"):
        optimizer.step()
    before.assert_unchanged()
    q = unitary_parameter(4, 4)
    with pytest.raises(
        ValueError, match="`momentum_space` must be one of 'ambient', 'tangent', got"
    ):
        ProjUNNRiemannianSGD([q], momentum_space="skew")
    with pytest.raises(ValueError, match="`error_feedback` needs momentum_space"):
        ProjUNNRiemannianSGD([q], error_feedback=0.5, momentum_space="tangent")
