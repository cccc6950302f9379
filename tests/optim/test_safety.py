"""Gradients that are not finite, zero, huge or normal to the manifold do no harm."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    RETRACTIONS,
    SKETCHES,
    Snapshot,
    assert_same_bits,
    assert_same_state,
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

pytestmark = [
    pytest.mark.usefixtures("each_way"),
    pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped"),
]

SETTINGS = [
    (ProjUNNRiemannianSGD, {"lr": 0.1}),
    (ProjUNNRiemannianSGD, {"lr": 0.1, "momentum": 0.9}),
    (ProjUNNRiemannianSGD, {"lr": 0.1, "error_feedback": 0.9}),
    (ProjUNNRiemannianAdam, {"lr": 0.1, "amsgrad": True}),
    (ProjUNNRiemannianAdam, {"lr": 0.1, "second_moment": "scalar"}),
]
SKETCHES_AND_RANKS = [(sketch, k) for sketch in SKETCHES for k in (1, 2)] + [("tangent", None)]
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS)
each_sketch = pytest.mark.parametrize(("sketch", "k"), SKETCHES_AND_RANKS)


def state_of(optimizer, p):
    return {name: value.clone() for name, value in optimizer.state[p].items()}


# -- not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@each_sketch
@each_setting
def test_one_bad_entry_leaves_matrix_and_state_as_they_are(kind, options, sketch, k, bad, dtype):
    p = unitary_parameter(6, 6, dtype=dtype, k=k, sketch=sketch)
    optimizer = kind([p], **options)
    feed(optimizer, p, gradients(p, 3))
    before, state = p.detach().clone(), state_of(optimizer, p)
    for spoilt in ((2, 4), (slice(None), slice(None))):
        (grad,) = gradients(p, 1)
        grad[spoilt] = bad
        feed(optimizer, p, [grad])
    skipped = state.pop("skipped")
    after = state_of(optimizer, p)
    assert_same_bits(after.pop("skipped"), skipped + 2)
    assert_same_bits(p, before)
    assert_same_state(after, state)
    assert optimizer.skipped_steps == 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@each_setting
def test_a_run_with_bad_gradients_is_the_run_without_them(kind, options, dtype, bad):
    p = unitary_parameter(6, 6, dtype=dtype)
    clean = on_manifold(p.detach())
    grads = gradients(p, 6)
    broken = torch.full_like(p, bad)
    optimizer, other = kind([p], **options), kind([clean], **options)
    feed(optimizer, p, [broken, grads[0], grads[1], broken, broken, *grads[2:], broken])
    feed(other, clean, grads)
    assert_same_bits(p, clean)
    assert optimizer.skipped_steps == 4
    assert optimizer.state[p]["step"].item() == 6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@each_sketch
@each_setting
def test_a_bad_slice_stays_while_the_rest_of_its_batch_moves(kind, options, sketch, k, dtype, bad):
    p = unitary_parameter(3, 6, 6, dtype=dtype, k=k, sketch=sketch)
    optimizer = kind([p], **options)
    feed(optimizer, p, gradients(p, 2))
    before, state = p.detach().clone(), state_of(optimizer, p)
    (grad,) = gradients(p, 1)
    grad[1, 0, 0] = bad
    feed(optimizer, p, [grad])
    after = state_of(optimizer, p)
    assert_same_bits(after["skipped"], torch.tensor([0.0, 1.0, 0.0]))
    assert_same_bits(after["step"], torch.tensor([3, 2, 3]))
    assert_same_bits(p[1], before[1])
    for name in state.keys() - {"skipped"}:
        assert_same_bits(after[name][1], state[name][1])
    assert torch.isfinite(p).all()
    for index in (0, 2):
        assert torch.linalg.matrix_norm(p[index] - before[index]) > 1e-3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@each_setting
def test_a_bad_parameter_stays_while_the_others_of_its_kind_move(kind, options, bad):
    params = [unitary_parameter(6, 6, dtype=torch.float64) for _ in range(3)]
    plain = torch.nn.Parameter(torch.ones(3))
    others = [on_manifold(p.detach()) for p in params]
    optimizer, expected = kind([*params, plain], **options), kind(others, **options)
    for p, q in zip(params, others, strict=True):
        q.grad = torch.randn_like(q)
        p.grad = q.grad.clone()
    plain.grad = torch.ones(3)
    before = params[1].detach().clone()
    params[1].grad[0, 0] = bad
    others[1].grad = None
    optimizer.step()
    expected.step()
    assert_same_bits(params[1], before)
    assert_within(params[0], others[0], 1e-14)
    assert_within(params[2], others[2], 1e-14)
    assert (plain < 1).all()
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("second_moment", ["elementwise", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_second_moment_that_overflows_skips_the_step(dtype, second_moment):
    p = unitary_parameter(6, 6, dtype=dtype)
    optimizer = ProjUNNRiemannianAdam([p], lr=0.1, second_moment=second_moment)
    feed(optimizer, p, gradients(p, 2))
    before, state = p.detach().clone(), state_of(optimizer, p)
    (grad,) = gradients(p, 1)
    grad[0, 0] = 1e30
    feed(optimizer, p, [grad])
    assert optimizer.skipped_steps == 1
    assert_same_bits(p, before)
    for name in state.keys() - {"skipped"}:
        assert_same_bits(optimizer.state[p][name], state[name])
    feed(optimizer, p, gradients(p, 1))
    assert not torch.equal(p, before)


@each_setting
def test_momentum_buffers_that_overflow_skip_the_step(kind, options):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], **options)
    largest = torch.finfo(torch.float32).max
    before = p.detach().clone()
    for _ in range(3):
        feed(optimizer, p, [torch.full((6, 6), largest)])
    assert all(torch.isfinite(value).all() for value in optimizer.state[p].values())
    assert torch.isfinite(p).all()
    feed(optimizer, p, gradients(p, 2))
    assert not torch.equal(p, before)
    assert orthogonality_error(p) < 20 * eps(torch.float32)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_learning_rate_that_is_not_finite_skips_the_step(value, kind, k, retraction):
    p = unitary_parameter(6, 6, k=k, retraction=retraction)
    rate = torch.tensor(value)
    optimizer = kind([p], lr=rate)
    before = p.detach().clone()
    feed(optimizer, p, gradients(p, 1))
    assert_same_bits(p, before)
    assert optimizer.skipped_steps == 1
    rate.fill_(0.1)
    feed(optimizer, p, gradients(p, 1))
    assert optimizer.skipped_steps == 1
    assert not torch.equal(p, before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_skipped_steps_are_added_up_over_matrices_and_parameters(kind):
    first, second = unitary_parameter(4, 6, 6), unitary_parameter(6, 6)
    plain = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([{"params": [first, plain]}, {"params": [second]}], lr=0.1)
    assert optimizer.skipped_steps == 0
    for _ in range(2):
        first.grad, second.grad = torch.randn(4, 6, 6), torch.randn(6, 6)
        first.grad[[0, 2], 1, 1] = torch.nan
        second.grad[0, 0] = torch.inf
        plain.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.skipped_steps == 6


# -- zero and normal gradients ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_sketch
@each_setting
def test_a_zero_gradient_moves_nothing_and_the_next_one_does(
    kind, options, sketch, k, retraction, dtype
):
    p = unitary_parameter(6, 6, dtype=dtype, k=k, sketch=sketch, retraction=retraction)
    optimizer = kind([p], **options)
    before = p.detach().clone()
    feed(optimizer, p, [torch.zeros_like(p)] * 12)
    # The drift sweep may still round the columns that it visits.
    assert_within(p, before, 10 * eps(dtype))
    assert all(torch.isfinite(value).all() for value in optimizer.state[p].values())
    assert optimizer.skipped_steps == 0
    feed(optimizer, p, gradients(p, 2))
    assert torch.linalg.matrix_norm(p.detach() - before) > 1e-2
    assert orthogonality_error(p) < 20 * eps(dtype)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_sketch
@each_setting
def test_a_zero_gradient_moves_nothing_at_all_without_the_sweep(
    kind, options, sketch, k, retraction
):
    p = unitary_parameter(6, 6, k=k, sketch=sketch, retraction=retraction, sweep=0)
    before = p.detach().clone()
    feed(kind([p], **options), p, [torch.zeros_like(p)] * 5)
    assert_within(p, before, eps(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_sketch
@each_setting
def test_a_gradient_along_the_identity_does_not_move_it(
    kind, options, sketch, k, retraction, dtype
):
    p = on_manifold(torch.eye(6, dtype=dtype), k=k, sketch=sketch, retraction=retraction)
    optimizer = kind([p], **options)
    feed(optimizer, p, [torch.eye(6, dtype=dtype)] * 3)
    assert_within(p, torch.eye(6, dtype=dtype), 10 * eps(dtype))
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_hermitian_gradient_does_not_move_the_identity(size, k, retraction, dtype):
    p = on_manifold(torch.eye(6, dtype=dtype), k=k, retraction=retraction)
    noise = torch.randn(6, 6, dtype=dtype)
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, [size * (noise + noise.mH)])
    assert_within(p, torch.eye(6, dtype=dtype), 2 * eps(dtype) * max(size, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_a_normal_gradient_moves_by_its_rounding_only(k, dtype):
    p = unitary_parameter(6, 6, dtype=dtype, k=k)
    before = p.detach().clone()
    noise = torch.randn(6, 6, dtype=dtype)
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, [(noise + noise.mH) @ before])
    assert_within(p, before, 20 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@each_sketch
@each_setting
def test_a_zero_slice_stays_while_the_rest_of_its_batch_moves(kind, options, sketch, k, dtype):
    p = unitary_parameter(3, 6, 6, dtype=dtype, k=k, sketch=sketch)
    optimizer = kind([p], **options)
    before = p.detach().clone()
    for grad in gradients(p, 3):
        grad[1] = 0
        feed(optimizer, p, [grad])
    assert optimizer.skipped_steps == 0
    assert_within(p[1], before[1], 10 * eps(dtype))
    for index in (0, 2):
        assert torch.linalg.matrix_norm(p[index] - before[index]) > 1e-2
    assert orthogonality_error(p) < 20 * eps(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@each_sketch
@pytest.mark.parametrize("rank", [1, 2])
def test_a_gradient_of_low_rank_keeps_the_point_unitary(rank, sketch, k, dtype):
    p = unitary_parameter(6, 6, dtype=dtype, k=k, sketch=sketch)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    before = p.detach().clone()
    for _ in range(5):
        thin = torch.randn(6, rank, dtype=dtype), torch.randn(rank, 6, dtype=dtype)
        feed(optimizer, p, [thin[0] @ thin[1]])
    assert optimizer.skipped_steps == 0
    assert torch.linalg.matrix_norm(p.detach() - before) > 1e-2
    assert orthogonality_error(p) < 20 * eps(dtype)


@pytest.mark.parametrize("entry", [(0, 0), (0, 5), (5, 0), (3, 2)])
@pytest.mark.parametrize("start", ["identity", "rotation"])
@each_sketch
def test_a_gradient_with_one_entry_keeps_the_point_unitary(sketch, k, start, entry):
    x = torch.eye(6) if start == "identity" else rotation(6, 6)
    p = on_manifold(x, k=k, sketch=sketch)
    grad = torch.zeros(6, 6)
    grad[entry] = 1.0
    optimizer = ProjUNNRiemannianSGD([p], lr=0.3)
    feed(optimizer, p, [grad] * 6)
    assert optimizer.skipped_steps == 0
    assert orthogonality_error(p) < 20 * eps(torch.float32)


# -- sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_sketch
def test_steps_from_tiny_to_huge_stay_on_the_manifold(sketch, k, retraction, dtype):
    # A core is computed in float64; at length 1e2 each of five squarings doubles its rounding.
    bound = 20 * eps(dtype) + 100 * eps(torch.float64)
    for exponent in range(-8, 3):
        p = unitary_parameter(8, 8, dtype=dtype, k=k, sketch=sketch, retraction=retraction)
        before = p.detach().clone()
        optimizer = ProjUNNRiemannianSGD([p], lr=1.0)
        for grad in gradients(p, 5):
            feed(optimizer, p, [10.0**exponent * grad / torch.linalg.matrix_norm(grad)])
        assert optimizer.skipped_steps == 0
        assert orthogonality_error(p) < bound
        if 10.0**exponent > 100 * eps(dtype):
            assert torch.linalg.matrix_norm(p.detach() - before) > 10.0**exponent / 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_sketch
def test_absurdly_long_steps_stay_on_the_manifold(sketch, k, retraction, dtype):
    for size in (1e4, 1e8, 1e16, 1e30):
        p = unitary_parameter(8, 8, dtype=dtype, k=k, sketch=sketch, retraction=retraction)
        optimizer = ProjUNNRiemannianSGD([p], lr=size)
        feed(optimizer, p, gradients(p, 2))
        assert optimizer.skipped_steps == 0
        assert orthogonality_error(p) < 30 * eps(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_tiny_step_keeps_its_digits(sketch, retraction, dtype):
    """The relative error of a step of size 1e-8 is the rounding of x over 1e-8."""
    start = rotation(8, 8, dtype=dtype)
    (grad,) = gradients(start, 1)
    moves = []
    for lr in (1e-6, 1e-8):
        p = on_manifold(start, k=2, sketch=sketch, retraction=retraction, sweep=0)
        feed(ProjUNNRiemannianSGD([p], lr=lr), p, [grad])
        moves.append((p.detach() - start) / lr)
    # The first of the two is curved by 1e-6, the second rounded by eps / 1e-8.
    assert_within(moves[1], moves[0], 1e-4)


@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_only_the_product_of_learning_rate_and_gradient_matters(scale, dtype, sketch):
    p = unitary_parameter(8, 8, dtype=dtype, k=2, sketch=sketch)
    q = on_manifold(p.detach(), k=2, sketch=sketch)
    grads = gradients(p, 4)
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, grads)
    feed(ProjUNNRiemannianSGD([q], lr=0.1 / scale), q, [scale * grad for grad in grads])
    assert_within(p, q, 20 * eps(dtype))


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_gradients_near_the_ends_of_the_range_still_move_downhill(dtype, size, sketch):
    p = unitary_parameter(8, 8, dtype=dtype, k=2, sketch=sketch)
    before = p.detach().clone()
    optimizer = ProjUNNRiemannianSGD([p], lr=0.01 / size)
    (grad,) = gradients(p, 1)
    feed(optimizer, p, [size * grad])
    moved = p.detach() - before
    assert optimizer.skipped_steps == 0
    assert (grad.conj() * moved).real.sum() < -1e-3
    assert orthogonality_error(p) < 20 * eps(dtype)


# -- small and odd shapes --------------------------------------------------------------


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("n", "k"), [(1, None), (2, 1), (2, None), (3, 1), (4, 2), (5, 2)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_smallest_matrices_are_stepped_downhill(kind, n, k, dtype, retraction):
    p = unitary_parameter(n, n, dtype=dtype, k=k, retraction=retraction)
    target = near_identity(n, dtype) @ p.detach()
    optimizer = kind([p], lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (p - target).abs().square().sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert orthogonality_error(p) < 100 * eps(dtype)
    if (n, dtype) == (1, torch.float64):  # a sign has nowhere to go
        assert losses[-1] == losses[0]
    else:
        assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_empty_batch_is_stepped_without_complaint(kind):
    p = geoopt.ManifoldParameter(torch.zeros(0, 6, 6), manifold=LowRankUnitary())
    q = unitary_parameter(6, 6)
    before = q.detach().clone()
    optimizer = kind([p, q], lr=0.1)
    p.grad, q.grad = torch.zeros(0, 6, 6), torch.randn(6, 6)
    optimizer.step()
    assert p.shape == (0, 6, 6)
    assert not torch.equal(q, before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_of_a_step_that_was_skipped_first_can_still_be_saved(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    feed(optimizer, p, [torch.full((6, 6), torch.nan)])
    before = Snapshot(optimizer)
    other = kind([p], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.skipped_steps == 1
    before.assert_unchanged()
