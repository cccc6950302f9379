"""Ten thousand steps in single precision stay on the manifold."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import RETRACTIONS, eps, orthogonality_error, unitary_parameter

pytestmark = pytest.mark.usefixtures("each_way")

N = 128


def wander(steps, dtype, retraction, sweep):
    """Take random steps of length 1e-3 to 3; return the largest error seen on the way."""
    p = unitary_parameter(N, N, dtype=dtype, retraction=retraction, sweep=sweep)
    directions = [torch.randn(N, N, dtype=dtype) for _ in range(61)]
    lengths = (10 ** (torch.rand(steps) * 3.5 - 3)).tolist()
    optimizer = ProjUNNRiemannianSGD([p], lr=1.0)
    worst = 0.0
    for step, length in enumerate(lengths):
        p.grad = directions[step % 61]
        # A random tangent direction of rank one carries about 2 / n of the squared norm.
        optimizer.param_groups[0]["lr"] = length / N**0.5
        optimizer.step()
        if step % 500 == 499:
            worst = max(worst, orthogonality_error(p))
    assert optimizer.skipped_steps == 0
    return worst


@pytest.mark.parametrize(
    ("each_way", "retraction", "dtype", "steps"),
    [
        *(("cpu", name, torch.float32, 10_000) for name in RETRACTIONS),
        ("cpu", "exponential", torch.complex64, 10_000),
        # Slower, and without the sweep as far off after 2 000.
        ("reference", "exponential", torch.complex64, 3_000),
    ],
    indirect=["each_way"],
)
def test_thousands_of_random_steps_stay_on_the_manifold(retraction, dtype, steps):
    assert wander(steps, dtype, retraction, sweep=1) < 1e-5


@pytest.mark.parametrize(
    ("each_way", "retraction"),
    [*(("cpu", name) for name in RETRACTIONS), ("reference", "exponential")],
    indirect=["each_way"],
)
def test_without_the_sweep_rounding_adds_up(retraction):
    assert wander(2_000, torch.float32, retraction, sweep=0) > 1e-5


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_more_columns_in_a_sweep_hold_the_error_lower(kind):
    one, four = (wander(500, kind, "cayley", sweep) for sweep in (1, 4))
    assert four < one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_a_sweep_mends_an_error_that_is_already_there(dtype):
    """Within two rounds of n steps, a relative error of 1e-5 is down to rounding."""
    p = unitary_parameter(16, 16, dtype=dtype)
    with torch.no_grad():
        p.add_(1e-5 * torch.randn_like(p))
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    before = orthogonality_error(p)
    for _ in range(32):
        p.grad = torch.randn_like(p)
        optimizer.step()
    assert before > 1e-5
    assert orthogonality_error(p) < 1e-8 + 30 * eps(dtype)


def test_a_step_of_any_length_does_not_amplify_an_error():
    """P is unitary to the rounding of float64: an error of x is carried along, not fed."""
    for retraction in RETRACTIONS:
        p = unitary_parameter(16, 16, dtype=torch.float64, retraction=retraction, sweep=0)
        with torch.no_grad():
            p.add_(1e-5 * torch.randn_like(p))
        optimizer = ProjUNNRiemannianSGD([p], lr=1.0)
        before = orthogonality_error(p)
        for _ in range(500):
            p.grad = torch.randn_like(p)
            optimizer.step()
        assert orthogonality_error(p) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("k", [1, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_rounding_does_not_grow_with_the_rank_of_a_step(dtype, k, by_columns):
    n = 256
    p = unitary_parameter(n, n, dtype=dtype, k=k)
    directions = [torch.randn(n, n, dtype=dtype) for _ in range(7)]
    if by_columns:
        p.data = p.data.mT.contiguous().mT
        directions = [d.mT.contiguous().mT for d in directions]
    start = p.detach().clone()
    optimizer = ProjUNNRiemannianSGD([p], lr=2.0 / n)
    for step in range(300):
        p.grad = directions[step % 7]
        optimizer.step()
    assert p.mT.is_contiguous() == by_columns
    assert torch.linalg.matrix_norm(p.detach() - start) > 1
    assert orthogonality_error(p) < 1.2e-5
