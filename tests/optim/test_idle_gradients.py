"""Gradients that are zero, normal to the manifold or of low rank do no harm."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    RETRACTIONS,
    assert_same_bits,
    assert_within,
    eps,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)
from ._settings import each_setting, each_sketch

pytestmark = [
    pytest.mark.usefixtures("each_way"),
    pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@each_sketch
@each_setting
def test_a_zero_gradient_moves_nothing_and_the_next_one_does(kind, options, sketch, k, dtype):
    for retraction in RETRACTIONS:
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


@each_sketch
@each_setting
def test_a_zero_gradient_moves_nothing_at_all_without_the_sweep(kind, options, sketch, k):
    for retraction in RETRACTIONS:
        p = unitary_parameter(6, 6, k=k, sketch=sketch, retraction=retraction, sweep=0)
        before = p.detach().clone()
        feed(kind([p], **options), p, [torch.zeros_like(p)] * 5)
        assert_same_bits(p, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@each_sketch
@each_setting
def test_a_gradient_along_the_identity_does_not_move_it(kind, options, sketch, k, dtype):
    for retraction in RETRACTIONS:
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
    is_normal = start == "identity" and entry == (0, 0)
    assert (torch.linalg.matrix_norm(p.detach() - x) < 1e-6) == is_normal
