"""Adam on LowRankUnitary against dense references and torch's own directions."""

import copy
import math

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam

from ._helpers import (
    DTYPES,
    RETRACTIONS,
    Procrustes,
    assert_same_bits,
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
from ._textbook import REAL_AND_COMPLEX, SECOND_MOMENTS, geodesic_step, textbook_adam

pytestmark = pytest.mark.usefixtures("each_way")
NAMES = {"elementwise": "exp_avg_sq", "scalar": "exp_avg_norm_sq"}

OPTIONS = [
    {},
    {"betas": (0.5, 0.6)},
    {"betas": (0.0, 0.9)},
    {"eps": 0.3},
    {"amsgrad": True, "betas": (0.9, 0.3)},
    {"maximize": True},
]


@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
def test_full_rank_trajectory_is_the_textbook_one(dtype, second_moment, options, sweep):
    start = rotation(6, 6, dtype=dtype)
    p = on_manifold(start, k=None, sweep=sweep)
    grads = gradients(p, 20)
    optimizer = ProjUNNRiemannianAdam([p], lr=0.02, second_moment=second_moment, **options)
    feed(optimizer, p, grads)
    expected = textbook_adam(start, grads, 0.02, second_moment, **options)
    assert torch.linalg.matrix_norm(expected - start) > 0.02
    assert_within(p, expected, 200 * eps(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_full_rank_trajectory_in_single_precision_is_the_textbook_one(second_moment, dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    start = rotation(6, 6, dtype=dtype)
    p = on_manifold(start, k=None)
    grads = gradients(p, 20)
    feed(ProjUNNRiemannianAdam([p], lr=0.02, second_moment=second_moment), p, grads)
    expected = textbook_adam(start.to(wide), [g.to(wide) for g in grads], 0.02, second_moment)
    assert_within(p.detach().to(wide), expected, 20 * eps(dtype))


@pytest.mark.parametrize(
    "options",
    [{}, {"betas": (0.3, 0.8)}, {"eps": 0.1}, {"amsgrad": True, "betas": (0.9, 0.2)}],
)
def test_elementwise_directions_are_those_of_torch_adam(options):
    p = unitary_parameter(6, 6, dtype=torch.float64, k=None, sweep=0)
    x = p.detach().clone()
    plain = torch.nn.Parameter(torch.zeros_like(x))
    optimizer = ProjUNNRiemannianAdam([p], lr=0.02, second_moment="elementwise", **options)
    reference = torch.optim.Adam([plain], lr=1.0, **options)
    for grad in gradients(p, 10):
        plain.detach().zero_()
        feed(reference, plain, [grad])
        feed(optimizer, p, [grad])
        x = geodesic_step(x, -plain.detach(), 0.02)
        assert_within(p, x, 100 * eps(torch.float64))


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_without_first_moment_it_is_rmsprop_with_bias_correction(alpha):
    """RMSprop divides by √v and Adam by √(v / (1 − αᵗ)): they differ by √(1 − αᵗ)."""
    p = unitary_parameter(6, 6, dtype=torch.float64, k=None, sweep=0)
    x = p.detach().clone()
    plain = torch.nn.Parameter(torch.zeros_like(x))
    options = {"betas": (0.0, alpha), "eps": 0.0, "second_moment": "elementwise"}
    optimizer = ProjUNNRiemannianAdam([p], lr=0.02, **options)
    reference = torch.optim.RMSprop([plain], lr=1.0, alpha=alpha, eps=0.0)
    for t, grad in enumerate(gradients(p, 10), start=1):
        plain.detach().zero_()
        feed(reference, plain, [grad])
        feed(optimizer, p, [grad])
        x = geodesic_step(x, -plain.detach() * math.sqrt(1 - alpha**t), 0.02)
        assert_within(p, x, 100 * eps(torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("second_moment", "size"), [("elementwise", (6, 6)), ("scalar", (1, 1))])
def test_second_moment_is_real_and_holds_the_squared_modulus(
    second_moment, size, batch, amsgrad, dtype
):
    p = unitary_parameter(*batch, 6, 6, dtype=dtype)
    (grad,) = gradients(p, 1)
    optimizer = ProjUNNRiemannianAdam(
        [p], betas=(0.9, 0.75), second_moment=second_moment, amsgrad=amsgrad
    )
    feed(optimizer, p, [grad])
    square = grad.abs() ** 2
    expected = square / 4 if size == (6, 6) else square.sum((-2, -1), keepdim=True) / 4
    name = NAMES[second_moment]
    names = [name, f"max_{name}"] if amsgrad else [name]
    for name in names:
        value = optimizer.state[p][name]
        assert value.dtype == grad.real.dtype
        assert value.shape == (*batch, *size)
        assert_within(value / expected, torch.ones(()), 20 * eps(dtype))
    assert (f"max_{NAMES[second_moment]}" in optimizer.state[p]) is amsgrad
    assert optimizer.state[p]["exp_avg"].dtype == dtype
    assert_within(optimizer.state[p]["exp_avg"], grad / 10, 10 * eps(dtype))


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_amsgrad_never_divides_by_less_than_before(second_moment):
    p = unitary_parameter(6, 6, dtype=torch.float64, k=None)
    optimizer = ProjUNNRiemannianAdam(
        [p], betas=(0.9, 0.1), amsgrad=True, second_moment=second_moment
    )
    largest = torch.zeros(())
    for grad in gradients(p, 8):
        feed(optimizer, p, [grad * torch.rand(())])
        name = NAMES[second_moment]
        largest = torch.maximum(largest, optimizer.state[p][name])
        assert_same_bits(optimizer.state[p][f"max_{name}"], largest)


@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_without_eps_the_scale_of_the_gradients_does_not_matter(second_moment, dtype, k):
    p = unitary_parameter(6, 6, dtype=dtype, k=k)
    q = on_manifold(p.detach(), k=k)
    grads = gradients(p, 5)
    options = {"lr": 0.01, "eps": 0.0, "second_moment": second_moment}
    feed(ProjUNNRiemannianAdam([p], **options), p, grads)
    feed(ProjUNNRiemannianAdam([q], **options), q, [grad / 1024 for grad in grads])
    assert_same_bits(p, q)


@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize(("second_moment", "length"), [("elementwise", 16.0), ("scalar", 1.0)])
def test_a_unit_of_learning_rate_is_a_direction_of_the_length_that_is_promised(
    second_moment, length, dtype
):
    """‖D‖_F is n elementwise and 1 scalar; a skew direction at x = I is all tangent."""
    p = on_manifold(torch.eye(16, dtype=dtype), k=None, sweep=0)
    skew = torch.randn(16, 16, dtype=dtype)
    skew = skew - skew.mH
    feed(ProjUNNRiemannianAdam([p], lr=1e-6, eps=1e-30, second_moment=second_moment), p, [skew])
    moved = torch.linalg.matrix_norm(p.detach() - torch.eye(16, dtype=dtype)).item() / 1e-6
    # A real skew matrix has no diagonal.
    assert length * (1 - 1 / 16) <= moved <= length * (1 + 1e-6)


@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 1), (torch.complex64, 4)])
@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize(
    ("retraction", "sketch"),
    [(name, "tangent") for name in RETRACTIONS] + [("exponential", "lsi"), ("polar", "column")],
)
def test_procrustes_is_solved(retraction, sketch, second_moment, k, dtype):
    n = 8
    problem = Procrustes(n, n, dtype=dtype, target=near_identity(n, dtype))
    p = on_manifold(torch.eye(n, dtype=dtype), k=k, retraction=retraction, sketch=sketch)
    lr = {"elementwise": 0.05, "scalar": 0.5}[second_moment]
    optimizer = ProjUNNRiemannianAdam([p], lr=lr, second_moment=second_moment)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.975)
    start = problem.loss(p).item()
    for _ in range(200):
        optimizer.zero_grad()
        problem.loss(p).backward()
        optimizer.step()
        schedule.step()
    assert start > 0.5
    assert problem.loss(p).item() < 0.01 * start
    assert orthogonality_error(p) < 20 * eps(dtype)


@pytest.mark.parametrize("entries", [(3.0, 1.0), (1.0, 3.0), (3.0, -1.0), (0.0, 1.0)])
def test_a_step_descends_unless_entries_are_scaled_one_by_one(entries):
    """Scaled one by one, two entries of one sign are equal: the generator vanishes."""
    grad = torch.tensor([[0.0, entries[0]], [entries[1], 0.0]], dtype=torch.float64)

    def slope(**options):
        p = on_manifold(torch.eye(2, dtype=torch.float64))
        feed(ProjUNNRiemannianAdam([p], lr=1e-3, **options), p, [grad])
        return float((grad * (p.detach() - torch.eye(2))).sum())

    assert slope() < -1e-4
    assert slope(second_moment="scalar") < -1e-4
    if entries[0] * entries[1] > 0:
        assert abs(slope(second_moment="elementwise")) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)])
def test_mean_is_scalar_in_the_unit_of_entries(lr, dtype):
    p = unitary_parameter(2, 8, 8, dtype=dtype)
    q, grads = copy.deepcopy(p), gradients(p, 3)
    feed(ProjUNNRiemannianAdam([p], lr=lr, second_moment="mean"), p, grads)
    feed(ProjUNNRiemannianAdam([q], lr=8 * lr, second_moment="scalar"), q, grads)
    assert_within(p, q, 1e-13)
