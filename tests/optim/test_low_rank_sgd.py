"""SGD on LowRankUnitary against dense references."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.linalg.hashing import uniform

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    RETRACTIONS,
    SKETCHES,
    Procrustes,
    assert_same_bits,
    assert_same_state,
    assert_within,
    bystander,
    eps,
    exp_skewh,
    feed,
    gradients,
    near_identity,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")

REAL_AND_COMPLEX = (torch.float64, torch.complex128)


def svd_polar(x):
    u, _, vh = torch.linalg.svd(x)
    return u @ vh


def cayley_of(generator):
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype)
    return torch.linalg.solve(eye - generator / 2, eye + generator / 2)


TEXTBOOK = {
    "exponential": lambda x, u: exp_skewh((u @ x.mH - x @ u.mH) / 2) @ x,
    "polar": lambda x, u: svd_polar(x + u),
    "cayley": lambda x, u: cayley_of(u @ x.mH) @ x,
}


def textbook_sgd(
    x, gradient, steps, retraction, lr, momentum=0.0, dampening=0.0, nesterov=False, maximize=False
):
    """Riemannian gradient descent with a momentum buffer in the ambient space."""
    buffer = None
    for _ in range(steps):
        d = -gradient(x) if maximize else gradient(x)
        if momentum:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            d = d + momentum * buffer if nesterov else buffer
        x = TEXTBOOK[retraction](x, -lr * (d - x @ d.mH @ x) / 2)
    return x


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
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
def test_a_step_is_the_manifolds_own_retraction_of_what_the_sketch_keeps(sketch, retraction, dtype):
    if (sketch, retraction) == ("lsi", "polar"):
        retraction = "exponential"  # polar keeps the normal part, which no tangent vector has
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


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
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
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_weight_decay_has_no_effect(sketch, k, kind):
    decayed = unitary_parameter(6, 6, k=k, sketch=sketch)
    free = on_manifold(decayed.detach(), k=k, sketch=sketch)
    grads = gradients(free, 5)
    feed(kind([decayed], lr=0.01, weight_decay=0.5), decayed, grads)
    feed(kind([free], lr=0.01), free, grads)
    assert_same_bits(decayed, free)


@pytest.mark.parametrize("options", [{}, {"second": True}])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_maximize_is_descending_on_the_negated_loss(k, sketch, kind, options):
    down = unitary_parameter(6, 6, dtype=torch.float64, k=k, sketch=sketch)
    up = on_manifold(down.detach(), k=k, sketch=sketch)
    options = ({"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}) if options else {}
    grads = gradients(down, 5)
    feed(kind([down], lr=0.01, **options), down, [-grad for grad in grads])
    feed(kind([up], lr=0.01, maximize=True, **options), up, grads)
    assert_within(up, down, 20 * eps(torch.float64))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximize_climbs(dtype, kind):
    p = unitary_parameter(6, 6, dtype=dtype)
    weights = torch.randn(6, 6, dtype=dtype)
    optimizer = kind([p], lr=0.05, maximize=True)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = (weights.conj() * p).real.sum()
        values.append(value.item())
        value.backward()
        optimizer.step()
    assert values[-1] > values[0] + 0.5


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_a_batch_equals_the_loop_over_its_matrices(batch, dtype, sketch, k, kind):
    together = unitary_parameter(*batch, 6, 6, dtype=dtype, k=k, sketch=sketch)
    apart = [on_manifold(x, k=k, sketch=sketch) for x in together.detach().view(-1, 6, 6)]
    grads = gradients(together, 4)
    feed(kind([together], lr=0.02), together, grads)
    for index, p in enumerate(apart):
        feed(kind([p], lr=0.02), p, [grad.view(-1, 6, 6)[index] for grad in grads])
    assert_within(together, torch.stack([p.detach() for p in apart]).view_as(together), 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("k", [1, None])
def test_parameters_of_one_shape_in_a_group_equal_separate_optimizers(k, batch, kind):
    together = [unitary_parameter(*batch, 6, 6, dtype=torch.float64, k=k) for _ in range(3)]
    apart = [on_manifold(p.detach(), k=k) for p in together]
    optimizer = kind(together, lr=0.02)
    others = [kind([p], lr=0.02) for p in apart]
    for _ in range(4):
        for p, q, other in zip(together, apart, others, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
            other.step()
        optimizer.step()
    for p, q, other in zip(together, apart, others, strict=True):
        assert_within(p, q, 1e-13)
        for name, value in optimizer.state[p].items():
            assert_within(value.double(), other.state[q][name], 1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equal_shapes_on_different_manifolds_keep_their_own_rules(kind):
    start = rotation(6, 6, dtype=torch.float64)
    choices = [{"k": 1}, {"k": 2}, {"k": None}, {"k": 1, "retraction": "cayley"}]
    together = [on_manifold(start, **choice) for choice in choices]
    grads = gradients(together[0], 3)
    optimizer = kind(together, lr=0.1)
    for grad in grads:
        for p in together:
            p.grad = grad.clone()
        optimizer.step()
    for p, choice in zip(together, choices, strict=True):
        alone = on_manifold(start, **choice)
        feed(kind([alone], lr=0.1), alone, grads)
        assert_same_bits(p, alone)
    assert all(not torch.equal(p, q) for i, p in enumerate(together) for q in together[i + 1 :])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("n", [16, 300])
def test_a_transposed_view_is_stepped_as_its_contiguous_copy(n, dtype, kind):
    start = rotation(n, n, dtype=dtype)
    view = geoopt.ManifoldParameter(start.mT.contiguous().mT, manifold=LowRankUnitary(k=2))
    copy = on_manifold(start, k=2)
    assert not view.is_contiguous()
    grads = gradients(copy, 3, scale=1 / n)
    address, strides = view.data_ptr(), view.stride()
    feed(kind([view], lr=0.01), view, grads)
    feed(kind([copy], lr=0.01), copy, grads)
    assert (view.data_ptr(), view.stride()) == (address, strides)
    assert torch.linalg.matrix_norm(copy.detach() - start) > 1e-3
    assert_within(view, copy, 1000 * eps(dtype))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("permutation", [(1, 0, 3, 2), (1, 0, 2, 3), (0, 1, 3, 2)])
def test_a_permuted_batch_is_stepped_as_its_contiguous_copy(permutation, kind):
    start = rotation(2, 3, 5, 5, dtype=torch.float64).permute(permutation).contiguous()
    inverse = [permutation.index(axis) for axis in range(4)]
    view = start.permute(inverse).contiguous().permute(permutation)
    view = geoopt.ManifoldParameter(view, manifold=LowRankUnitary(k=2))
    copy = on_manifold(start, k=2)
    assert not view.is_contiguous()
    grads = gradients(copy, 3)
    feed(kind([view], lr=0.01), view, grads)
    feed(kind([copy], lr=0.01), copy, grads)
    assert_within(view, copy, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_view_into_a_larger_tensor_leaves_its_neighbours_alone(kind):
    storage = torch.full((3, 6, 6), 7.0)
    storage[1] = rotation(6, 6)
    p = geoopt.ManifoldParameter(storage[1], manifold=LowRankUnitary())
    before = storage[1].clone()
    feed(kind([p], lr=0.1), p, gradients(p, 2))
    assert_same_bits(storage[1], p)
    assert not torch.equal(storage[1], before)
    assert torch.equal(storage[[0, 2]], torch.full((2, 6, 6), 7.0))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_layout_of_a_gradient_does_not_matter(kind):
    dense = unitary_parameter(6, 6, dtype=torch.float64)
    p, q = (on_manifold(dense.detach()) for _ in range(2))
    grads = gradients(dense, 3)
    feed(kind([dense], lr=0.1), dense, grads)
    optimizers = kind([p], lr=0.1), kind([q], lr=0.1)
    for grad in grads:
        p.grad = grad.mT.contiguous().mT
        q.grad = torch.stack((grad, grad), -1)[..., 0]
        for optimizer in optimizers:
            optimizer.step()
    assert_within(p, dense, 1e-13)
    assert_within(q, dense, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_expanded_gradient_is_stepped_as_its_dense_copy(kind):
    p = unitary_parameter(6, 6, dtype=torch.float64)
    q = on_manifold(p.detach())
    row = torch.randn(6).double()
    optimizers = kind([p], lr=0.1), kind([q], lr=0.1)
    p.grad, q.grad = row.expand(6, 6), row.expand(6, 6).contiguous()
    for optimizer in optimizers:
        optimizer.step()
    assert_within(p, q, 1e-13)


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


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [torch.tensor(0.125), torch.tensor([0.125])])
def test_a_learning_rate_may_be_a_tensor(value, kind):
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    grads = gradients(p, 4)
    feed(kind([p], lr=value), p, grads)
    feed(kind([q], lr=0.125), q, grads)
    assert_same_bits(p, q)


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


def test_the_same_run_twice_gives_the_same_bits():
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        p = unitary_parameter(3, 8, 8, k=2)
        optimizer = ProjUNNRiemannianSGD([p, bystander()], lr=0.1, momentum=0.9)
        feed(optimizer, p, gradients(p, 5))
        runs.append((p, optimizer.state[p]))
    assert_same_bits(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {"momentum": 0.9, "dampening": 0.3}),
        (ProjUNNRiemannianAdam, {"amsgrad": True, "second_moment": "elementwise"}),
        (ProjUNNRiemannianAdam, {"second_moment": "scalar"}),
    ],
)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_the_default_dtype_and_device_have_no_say(sketch, kind, options, dtype):
    p = unitary_parameter(8, 8, dtype=dtype, k=2, sketch=sketch)
    q = on_manifold(p.detach(), k=2, sketch=sketch)
    grads = gradients(p, 4)
    feed(kind([p], lr=0.1, **options), p, grads)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            feed(kind([q], lr=0.1, **options), q, grads)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(p, q)


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_draws_no_random_numbers(kind, sketch):
    p = unitary_parameter(8, 8, sketch=sketch)
    grads = gradients(p, 3)
    before = torch.get_rng_state()
    feed(kind([p], lr=0.1), p, grads)
    assert torch.equal(torch.get_rng_state(), before)
