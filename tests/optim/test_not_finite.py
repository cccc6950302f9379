"""A step that would not be finite is skipped: matrix and state stay as they are."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    RETRACTIONS,
    Snapshot,
    assert_same_bits,
    assert_same_state,
    assert_within,
    eps,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    unitary_parameter,
)
from ._settings import each_setting, each_sketch, state_of

pytestmark = [
    pytest.mark.usefixtures("each_way"),
    pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped"),
]


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
def test_gradients_that_overflow_skip_the_step(kind, options):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], **options)
    largest = torch.finfo(torch.float32).max
    before = p.detach().clone()
    for _ in range(3):
        feed(optimizer, p, [torch.full((6, 6), largest)])
    assert_same_bits(p, before)
    assert optimizer.skipped_steps == 3
    assert all(torch.isfinite(value).all() for value in optimizer.state[p].values())
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


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_no_entry_of_a_buffer_is_bad_where_a_step_reads_few_rows(bad, row):
    p = unitary_parameter(8, 8, sketch="coordinates", sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    grad = torch.randn_like(p)
    grad[row, 0] = bad
    feed(optimizer, p, [grad])
    assert optimizer.skipped_steps == 1
    assert optimizer.state[p]["momentum_buffer"].isfinite().all()
