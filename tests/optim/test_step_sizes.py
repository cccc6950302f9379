"""Steps and gradients from tiny to huge stay on the manifold and keep their digits."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    RETRACTIONS,
    SKETCHES,
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
        before = p.detach().clone()
        first, second = gradients(p, 2)
        feed(optimizer, p, [first])
        assert torch.linalg.matrix_norm(p.detach() - before) > 0.3
        feed(optimizer, p, [second])
        assert optimizer.skipped_steps == 0
        assert orthogonality_error(p) < 30 * eps(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@each_sketch
@each_setting
def test_a_step_of_length_zero_changes_no_bit(kind, options, sketch, k, dtype):
    for retraction, lr in zip(RETRACTIONS, [0, 0.0, torch.tensor(0.0)], strict=True):
        p = unitary_parameter(8, 8, dtype=dtype, k=k, sketch=sketch, retraction=retraction)
        # Off by more than rounding, so that there is something to sweep.
        with torch.no_grad():
            p.mul_(1 + 1e-5)
        before = p.detach().clone()
        optimizer = kind([p], **{**options, "lr": lr})
        feed(optimizer, p, gradients(p, 2))
        assert_same_bits(p, before)
        assert optimizer.state[p]["step"] == 2
        optimizer.param_groups[0]["lr"] = 0.1
        feed(optimizer, p, gradients(p, 1))
        assert not torch.equal(p, before)


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
