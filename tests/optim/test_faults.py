"""Faults of the reference implementation of projUNN that concern its optimizers."""

import cmath

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
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

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_zero_gradient_in_a_batch_gives_no_nan(kind, retraction, sketch):
    p = unitary_parameter(4, 6, 6, retraction=retraction, sketch=sketch)
    before = p.detach().clone()
    optimizer = kind([p], lr=0.1)
    feed(optimizer, p, [torch.zeros(4, 6, 6)])
    assert_within(p, before, 2 * eps(torch.float32))
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_an_update_aligned_with_the_identity_keeps_a_batch_orthogonal(retraction, sketch, k):
    eye = torch.eye(6).expand(4, 6, 6)
    p = on_manifold(eye, k=k, retraction=retraction, sketch=sketch)
    # At lr = 1 the paper's update I - VVᴴ is singular, and no nearest matrix is unique.
    feed(ProjUNNRiemannianSGD([p], lr=0.5), p, [eye.clone(), -3 * eye])
    assert orthogonality_error(p) < 10 * eps(torch.float32)
    assert_within(p, eye, 10 * eps(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [1e-6, 1e-9])
def test_a_small_gradient_is_not_lost(size, retraction, dtype):
    """With ‖G‖ = 1e-6 the reference keeps 22 % of an update."""
    p = unitary_parameter(6, 6, dtype=dtype, retraction=retraction, sketch="lsi")
    q = on_manifold(p.detach(), retraction=retraction, sketch="lsi")
    (grad,) = gradients(p, 1)
    grad /= torch.linalg.matrix_norm(grad)
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, [grad])
    feed(ProjUNNRiemannianSGD([q], lr=0.1 / size), q, [size * grad])
    assert_within(q, p, 10 * eps(dtype))


def test_column_sampling_keeps_the_largest_columns():
    """One column of a hundred times the length is drawn nearly always."""
    start = rotation(32, 32, dtype=torch.float64)
    kept = []
    for _ in range(20):
        grad = torch.randn(32, 32).double()
        grad[:, 5] *= 100
        exact = on_manifold(start, k=None)
        p = on_manifold(start, k=1, sketch="column")
        for q in (exact, p):
            feed(ProjUNNRiemannianSGD([q], lr=1e-6), q, [grad])
        kept.append((torch.dist(p, start) / torch.dist(exact, start)).item())
    assert sum(share > 0.9 for share in kept) >= 18


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_double_precision_keeps_all_its_digits(dtype, retraction, sketch, kind):
    p = unitary_parameter(6, 6, dtype=dtype, k=2, retraction=retraction, sketch=sketch)
    optimizer = kind([p], lr=0.05)
    feed(optimizer, p, gradients(p, 30))
    assert p.dtype == dtype
    assert orthogonality_error(p) < 50 * eps(dtype)
    wide = {value.dtype for value in optimizer.state[p].values()}
    assert wide <= {dtype, torch.float64, torch.int64}


@pytest.mark.parametrize("second_moment", ["elementwise", "scalar"])
def test_rmsprop_of_a_complex_gradient_averages_the_squared_modulus(second_moment):
    """g² of 1 + i and 1 − i averages to 0, |g|² to 2."""
    p = unitary_parameter(6, 6, dtype=torch.complex128)
    optimizer = ProjUNNRiemannianAdam([p], betas=(0.0, 0.5), second_moment=second_moment)
    grads = [torch.full((6, 6), value) for value in (1 + 1j, 1 - 1j)]
    feed(optimizer, p, [grad.to(torch.complex128) for grad in grads])
    entries = 1 if second_moment == "elementwise" else 36
    name = "exp_avg_sq" if second_moment == "elementwise" else "exp_avg_norm_sq"
    expected = torch.full_like(optimizer.state[p][name], 2 * entries * 0.75)
    assert_within(optimizer.state[p][name], expected, 1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 1.57])
def test_the_phase_of_a_complex_gradient_does_not_change_its_second_moment(angle):
    p = unitary_parameter(6, 6, dtype=torch.complex128)
    (grad,) = gradients(p, 1)
    turned = grad * torch.tensor(cmath.rect(1.0, angle), dtype=p.dtype)
    optimizer = ProjUNNRiemannianAdam([p], second_moment="elementwise")
    feed(optimizer, p, [turned])
    assert_within(optimizer.state[p]["exp_avg_sq"], grad.abs() ** 2 / 1000, 1e-15)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_of_every_group_is_stepped(kind):
    params = [unitary_parameter(6, 6) for _ in range(6)]
    optimizer = kind([{"params": params[:2]}, {"params": params[2:5]}, {"params": params[5:]}])
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("n", [6, 300])
def test_no_argument_is_changed(n, k, kind, options, layout):
    sphere = geoopt.Sphere()
    params = [
        unitary_parameter(n, n, k=k),
        unitary_parameter(2, n, n, dtype=torch.complex64, k=k, sketch="lsi"),
        torch.nn.Parameter(torch.randn(3, 4)),
        geoopt.ManifoldParameter(sphere.random(3, 4), manifold=sphere),
    ]
    if n == 300:
        params = params[:1]
    for p in params:
        p.grad = torch.randn_like(p)
        if layout == "transposed":
            p.grad = torch.randn_like(p).mT.contiguous().mT
        elif layout == "expanded":
            p.grad = torch.randn_like(p)[..., :1].expand(p.shape)
    kept = [p.grad for p in params]
    before = [p.grad.clone() for p in params]
    group = {"params": params, "lr": 0.1, **options}
    passed = dict(group)
    optimizer = kind([group])
    for _ in range(2):
        optimizer.step()
    for p, same, value in zip(params, kept, before, strict=True):
        assert p.grad is same
        assert_same_bits(p.grad, value)
    assert {key: group[key] for key in passed} == passed


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_manifold_may_serve_many_parameters(kind):
    """The reference keeps what a step learnt on the module; nothing is kept on the manifold."""
    manifold = LowRankUnitary(k=1)
    start = [rotation(6, 6, dtype=torch.float64) for _ in range(2)]
    shared = [geoopt.ManifoldParameter(x.clone(), manifold=manifold) for x in start]
    apart = [on_manifold(x) for x in start]
    before = dict(vars(manifold))
    for params in (shared, apart):
        torch.manual_seed(1)
        optimizer = kind(params, lr=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
    for p, q in zip(shared, apart, strict=True):
        assert_same_bits(p, q)
    assert dict(vars(manifold)) == before
