"""SGD on LowRankUnitary against dense references."""

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.linalg.hashing import uniform

from ._helpers import (
    OPTIMIZERS,
    RETRACTIONS,
    SKETCHES,
    Procrustes,
    assert_within,
    eps,
    feed,
    gradients,
    near_identity,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)
from ._textbook import REAL_AND_COMPLEX, TEXTBOOK, svd_polar, textbook_sgd

pytestmark = pytest.mark.usefixtures("each_way")


def train(p, problem, steps, optimizer):
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(p).backward()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4},
        {"momentum": 0.9, "nesterov": True},
        {"maximize": True},
        {"maximize": True, "momentum": 0.5, "nesterov": True},
    ],
)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
def test_full_rank_trajectory_is_the_textbook_one(dtype, retraction, options, sweep):
    problem = Procrustes(6, 6, dtype=dtype)
    start = rotation(6, 6, dtype=dtype)
    p = on_manifold(start, k=None, retraction=retraction, sweep=sweep)
    train(p, problem, 20, ProjUNNRiemannianSGD([p], lr=0.05, **options))
    expected = textbook_sgd(start, problem.gradient, 20, retraction, 0.05, **options)
    assert torch.linalg.matrix_norm(expected - start) > 0.1
    assert_within(p, expected, 200 * eps(dtype))


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_full_rank_trajectory_in_single_precision_is_the_textbook_one(dtype, retraction):
    problem = Procrustes(6, 6, dtype=dtype)
    p = on_manifold(rotation(6, 6, dtype=dtype), k=None, retraction=retraction)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = Procrustes(6, 6, dtype=wide)
    exact.a, exact.b = problem.a.to(wide), problem.b.to(wide)
    start = svd_polar(p.detach().to(wide))
    train(p, problem, 20, ProjUNNRiemannianSGD([p], lr=0.05, momentum=0.5))
    expected = textbook_sgd(start, exact.gradient, 20, retraction, 0.05, momentum=0.5)
    assert_within(p.detach().to(wide), expected, 20 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_full_rank_steps_equal_those_of_geoopt_on_the_exact_manifold(retraction, dtype):
    problem = Procrustes(6, 6, dtype=dtype)
    ours = unitary_parameter(6, 6, dtype=dtype, k=None, retraction=retraction, sweep=0)
    theirs = on_manifold(ours.detach(), k=None, retraction=retraction)
    train(ours, problem, 15, ProjUNNRiemannianSGD([ours], lr=0.05))
    train(theirs, problem, 15, geoopt.optim.RiemannianSGD([theirs], lr=0.05))
    assert_within(ours, theirs, 200 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize(
    ("sketch", "retraction"),
    # With lsi, polar keeps the normal part, which no tangent vector has.
    [*(("tangent", name) for name in RETRACTIONS), ("lsi", "exponential"), ("lsi", "cayley")],
)
def test_a_step_is_the_manifolds_own_retraction_of_what_the_sketch_keeps(sketch, retraction, dtype):
    p = unitary_parameter(8, 8, dtype=dtype, k=2, retraction=retraction, sketch=sketch, sweep=0)
    (grad,) = gradients(p, 1)
    x = p.detach().clone()
    (rows,), (core,) = p.manifold.sketch_direction(x[None], grad[None], torch.tensor([0]))
    kept = rows.mH @ (core - core.mH) @ rows @ x / 2
    expected = p.manifold.retr(x, -0.1 * kept)
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, [grad])
    assert_within(p, expected, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("k", [1, 3])
def test_lsi_with_polar_is_the_nearest_unitary_matrix_to_the_papers_update(k, dtype):
    p = unitary_parameter(9, 9, dtype=dtype, k=k, retraction="polar", sketch="lsi", sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.3)
    for step, grad in enumerate(gradients(p, 4)):
        test = uniform(torch.tensor(step), k * 9).view(k, 9).mT.to(dtype)
        v = torch.linalg.qr(grad.mH @ test).Q
        expected = svd_polar(p.detach() - 0.3 * (grad @ v) @ v.mH)
        feed(optimizer, p, [grad])
        assert_within(p, expected, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("k", [1, 3])
def test_column_with_polar_is_the_nearest_unitary_matrix_to_a_projected_gradient(k, dtype):
    p = unitary_parameter(9, 9, dtype=dtype, k=k, retraction="polar", sketch="column", sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.3)
    for grad in gradients(p, 4):
        # All but k columns are faint: those k are drawn, whatever the random numbers.
        loud = torch.randperm(9)[:k]
        weight = torch.full((9,), 1e-12, dtype=torch.float64)
        weight[loud] = 1.0
        grad = grad * weight
        u = torch.linalg.qr(grad[:, loud]).Q
        expected = svd_polar(p.detach() - 0.3 * u @ (u.mH @ grad))
        feed(optimizer, p, [grad])
        assert_within(p, expected, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_a_step_retracts_what_the_sketch_of_its_number_keeps(retraction, k, dtype):
    p = unitary_parameter(9, 9, dtype=dtype, k=k, retraction=retraction, sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    for number, grad in enumerate(gradients(p, 4)):
        x = p.detach().clone()
        feed(optimizer, p, [grad])
        (rows,), (core,) = p.manifold.sketch_direction(x[None], grad[None], torch.tensor([number]))
        kept = rows.mH @ core @ rows
        omega = (grad @ x.mH - x @ grad.mH) / 2
        assert 0.1 < torch.linalg.matrix_norm(kept) / torch.linalg.matrix_norm(omega) < 1
        assert_within(p, TEXTBOOK[retraction](x, -0.1 * kept @ x), 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("sketch", ["lsi", "column"])
@pytest.mark.parametrize("retraction", ["exponential", "cayley"])
def test_a_gradient_of_rank_k_takes_the_step_of_the_exact_manifold(retraction, sketch, dtype):
    start = rotation(8, 8, dtype=dtype)
    low = on_manifold(start, k=2, retraction=retraction, sketch=sketch)
    full = on_manifold(start, k=None, retraction=retraction)
    grads = [torch.randn(8, 2, dtype=dtype) @ torch.randn(2, 8, dtype=dtype) / 4 for _ in range(10)]
    for p in (low, full):
        feed(ProjUNNRiemannianSGD([p], lr=0.1), p, grads)
    assert_within(low, full, 100 * eps(dtype))


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_a_real_gradient_of_rank_one_takes_the_exact_step_with_the_tangent_sketch(retraction):
    start = rotation(8, 8, dtype=torch.float64)
    low = on_manifold(start, k=1, retraction=retraction)
    full = on_manifold(start, k=None, retraction=retraction)
    grads = [torch.randn(8, 1).double() @ torch.randn(1, 8).double() / 4 for _ in range(10)]
    for p in (low, full):
        feed(ProjUNNRiemannianSGD([p], lr=0.1), p, grads)
    assert_within(low, full, 100 * eps(torch.float64))


@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 1), (torch.complex64, 4)])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_procrustes_is_solved_to_the_precision_of_the_data(retraction, sketch, dtype, k):
    n = 8
    problem = Procrustes(n, n, dtype=dtype, target=near_identity(n, dtype))
    p = on_manifold(torch.eye(n, dtype=dtype), k=k, retraction=retraction, sketch=sketch)
    start = problem.loss(p).item()
    train(p, problem, 300, ProjUNNRiemannianSGD([p], lr=0.6))
    assert start > 0.5
    assert problem.loss(p).item() < 1e-6 * start
    assert orthogonality_error(p) < 20 * eps(dtype)
    assert torch.linalg.matrix_norm(p.detach() - problem.target) < 1e-2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_step_moves_by_the_learning_rate_times_the_tangent_velocity(kind):
    """The step is first order: halving the learning rate halves it."""
    start = rotation(6, 6, dtype=torch.float64)
    grad = torch.randn(6, 6).double()
    moves = []
    for lr in (1e-4, 5e-5):
        p = on_manifold(start)
        feed(kind([p], lr=lr), p, [grad])
        moves.append((p.detach() - start) / lr)
    assert_within(moves[0], moves[1], 1e-2)
    assert torch.linalg.matrix_norm(moves[0]) > 0.5
