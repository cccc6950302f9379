"""Steps in radians: what ``lr`` means with ``normalize``, and what is refused."""

import copy
import math
import warnings

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
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    unitary_parameter,
)
from .test_costs import assert_linear_in_k_n_squared, assert_never_waits, flops, ready

pytestmark = pytest.mark.usefixtures("each_way")
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
each_sketch = pytest.mark.parametrize("sketch", SKETCHES)
each_retraction = pytest.mark.parametrize("retraction", RETRACTIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_name = pytest.mark.parametrize("normalize", ["angle", "spectral"])


def angles(start, p):
    """Angles of the eigenvalues of a step, the largest first."""
    wide = torch.complex128
    step = p.detach().to(wide) @ start.detach().to(wide).mH
    return torch.linalg.eigvals(step).angle().abs().sort(dim=-1, descending=True).values


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
    assert values.max() < 0.5 * math.sqrt(planes)
    assert values[planes:].abs().sum() < 1e-6


@each_sketch
@each_name
@each_dtype
@pytest.mark.parametrize("k", [1, 3, None])
def test_a_zero_gradient_moves_nothing(k, dtype, normalize, sketch):
    p = unitary_parameter(2, 8, 8, dtype=dtype, k=k, sketch=sketch, sweep=0)
    start, optimizer = p.detach().clone(), ProjUNNRiemannianSGD([p], lr=0.5, normalize=normalize)
    feed(optimizer, p, [torch.zeros_like(p)])
    assert_same_bits(p.detach(), start)
    assert optimizer.skipped_steps == 0
    assert (optimizer.state[p]["step"] == 1).all()


@each_name
@each_dtype
@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("n", [8, 65, 130])
@pytest.mark.parametrize("rank", ["one", "full"])
def test_a_normal_gradient_moves_nothing(rank, n, k, dtype, normalize):
    p = unitary_parameter(2, n, n, dtype=dtype, k=k, sweep=0)
    noise = torch.randn(2, n, 1 if rank == "one" else n, dtype=dtype)
    start, normal = p.detach().clone(), noise @ noise.mH @ p.detach()
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize=normalize), p, [normal])
    assert_same_bits(p.detach(), start)


@each_name
@pytest.mark.parametrize("k", [1, 3, None])
def test_a_small_tangent_part_is_followed(k, normalize):
    """A normal part of a hundred thousand times its size is no reason to stand still."""
    p = unitary_parameter(24, 24, dtype=torch.float32, k=k)
    start = p.detach().clone()
    skew, normal = torch.randn(24, 24), torch.randn(24, 24)
    grad = ((skew - skew.mT) + 1e4 * (normal + normal.mT)) @ start
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize=normalize), p, [grad])
    assert angles(start, p).max() > 0.3


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
    reached = min(expected[retraction], 4.0)
    assert values[0] <= reached + 1e-6
    assert values[0] > 0.99 * reached
    assert orthogonality_error(p) < 1e-12


@pytest.mark.parametrize(
    ("normalize", "lr", "k", "dtype"),
    [
        ("angle", 1.0, 16, torch.float32),
        # One eigenvalue of a complex generator may have all of it.
        ("angle", 0.6, 16, torch.complex64),
        ("spectral", 3.2, 2, torch.float32),
    ],
)
def test_one_warning_says_that_planes_may_stop(normalize, lr, k, dtype):
    p = unitary_parameter(40, 40, k=k, dtype=dtype)
    optimizer = ProjUNNRiemannianSGD([("weight", p)], lr=lr, normalize=normalize)
    with pytest.warns(UserWarning, match=r"`weight`.*half a turn.*above π.*Lower it") as caught:
        feed(optimizer, p, gradients(p, 3))
    assert len(caught) == 1


def test_a_warning_that_is_an_error_leaves_all_parameters_as_they_were():
    p, plain = unitary_parameter(6, 6), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [plain]}, {"params": [p], "lr": 5.0, "normalize": "angle"}]
    optimizer = ProjUNNRiemannianSGD(groups, lr=0.1)
    plain.grad, p.grad = torch.ones(2), torch.randn_like(p)
    before = p.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="half a turn"):
            optimizer.step()
    assert_same_bits(p, before)
    assert_same_bits(plain, torch.ones(2))


@pytest.mark.parametrize(("normalize", "lr", "k"), [("angle", 0.78, 16), ("spectral", 3.1, 16)])
def test_shorter_steps_draw_no_warning(normalize, lr, k):
    p = unitary_parameter(40, 40, k=k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(ProjUNNRiemannianSGD([p], lr=lr, normalize=normalize), p, gradients(p, 2))


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


@each_name
@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize("k", [1, None])
def test_a_gradient_that_is_not_finite_moves_nothing(k, normalize):
    p = unitary_parameter(2, 8, 8, k=k)
    start, optimizer = p.detach().clone(), ProjUNNRiemannianSGD([p], lr=0.5, normalize=normalize)
    (grad,) = gradients(p, 1)
    grad[1, 2, 3] = torch.nan
    feed(optimizer, p, [grad])
    assert_same_bits(p.detach()[1], start[1])
    assert not torch.equal(p.detach()[0], start[0])
    assert optimizer.skipped_steps == 1


@each_name
@pytest.mark.parametrize("k", [1, 4])
def test_it_costs_a_constant_times_k_n_squared(k, normalize):
    assert_linear_in_k_n_squared(ProjUNNRiemannianSGD, {"normalize": normalize}, k)


@each_name
def test_beside_a_plain_step_it_costs_products_of_cores(normalize):
    work = [
        flops(ready(ProjUNNRiemannianSGD, {"normalize": name}, 4096, 4096, k=8, lr=lr))
        for name, lr in ((None, 0.1), (normalize, 0.1))
    ]
    assert work[1] - work[0] < 2**12 * 16**3


@each_name
@each_optimizer
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_nothing_waits_for_the_device(kind, normalize, lr):
    # The kernels read a tensor on a CPU where it is.
    rate = lr.to("meta") if isinstance(lr, torch.Tensor) else lr
    assert_never_waits(ready(kind, {"normalize": normalize}, 3, 16, 16, lr=rate, k=2))


@each_optimizer
@pytest.mark.parametrize("value", ["Angle", True, 1, "frobenius"])
def test_other_names_are_refused(kind, value):
    p = unitary_parameter(4, 4)
    with pytest.raises(ValueError, match=r"`normalize` must be None, 'angle' or 'spectral', got"):
        kind([p], normalize=value)
    optimizer = kind([p])
    optimizer.param_groups[0]["normalize"] = value
    p.grad = torch.randn_like(p)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"`normalize` must be None, 'angle' or 'spectral', got"):
        optimizer.step()
    before.assert_unchanged()


def test_error_feedback_is_refused():
    with pytest.raises(ValueError, match=r"`error_feedback` needs normalize = None.*got .*'angle'"):
        ProjUNNRiemannianSGD([unitary_parameter(4, 4)], error_feedback=0.9, normalize="angle")


@each_optimizer
def test_a_checkpoint_of_an_older_version_steps_as_it_did(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    feed(optimizer, p, gradients(p, 1))
    state = optimizer.state_dict()
    del state["param_groups"][0]["normalize"]
    other = kind([p], lr=0.1, normalize="angle")
    other.load_state_dict(state)
    assert other.param_groups[0]["normalize"] == "angle"
    own = kind([p], lr=0.1)
    own.load_state_dict(state)
    assert own.param_groups[0]["normalize"] is None


def test_regression_ends_lower_than_by_multiples_of_the_gradient():
    """One angle, decaying to zero, against the best of three rates."""
    n, steps = 24, 80
    target, start = rotation(n, n), rotation(n, n)
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
        return float(((p.detach() - target) @ root).square().sum())

    best = min(loss(lr, None) for lr in (0.1, 0.3, 1.0))
    assert 5 * loss(0.4, "angle") < best
    assert 2 * loss(0.4, "spectral") < best


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "manifold",
    [
        geoopt.Scaled(LowRankUnitary(k=1), 2.0),
        geoopt.ProductManifold((LowRankUnitary(k=1), (6, 6)), (geoopt.Sphere(), (6,))),
        geoopt.Scaled(geoopt.Scaled(LowRankUnitary(k=1), 2.0)),
        geoopt.ProductManifold(
            (geoopt.Scaled(LowRankUnitary(k=1)), (6, 6)), (geoopt.Sphere(), (6,))
        ),
    ],
    ids=["scaled", "product", "scaled twice", "product with scaled"],
)
def test_what_geoopt_steps_is_not_given_radians_without_a_word(kind, manifold):
    shape = (6, 6) if isinstance(manifold, geoopt.Scaled) else (42,)
    start = manifold.random(*shape).as_subclass(torch.Tensor)
    p = geoopt.ManifoldParameter(start, manifold=manifold)
    plain = torch.nn.Parameter(torch.ones(3))
    p.grad, plain.grad = torch.randn(p.shape), torch.ones(3)
    before = p.detach().clone()
    optimizer = kind([plain, p], lr=0.1, normalize="angle")
    with pytest.raises(ValueError, match=r"`normalize` must be None .* geoopt steps .*'angle'"):
        optimizer.step()
    assert torch.equal(p, before)
    assert torch.equal(plain, torch.ones(3))
    optimizer.param_groups[0]["normalize"] = None
    optimizer.step()
    assert not torch.equal(p, before)
