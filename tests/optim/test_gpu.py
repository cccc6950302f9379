"""Whole steps on a GPU: nothing waits for it, and the kernels take those of the reference."""

from concurrent.futures import ThreadPoolExecutor

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends
from tests._gpu import no_waiting

from ._helpers import (
    assert_within,
    feed,
    gradients,
    on_manifold,
    orthogonality_error,
    rotation,
    same_bits,
)

pytestmark = pytest.mark.gpu


SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {}),
    "momentum": (ProjUNNRiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "feedback": (ProjUNNRiemannianSGD, {"momentum": 0.5, "error_feedback": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"second_moment": "scalar", "amsgrad": True}),
}


each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


# All of them beside all others would compile kernels for minutes. One kernel steps matrices of 32
# rows, many step those of 96.
EACH = [
    (32, "sgd", "exponential", "tangent", torch.float64),
    (96, "sgd", "exponential", "tangent", torch.complex128),
    (96, "momentum", "polar", "lsi", torch.complex128),
    (32, "feedback", "cayley", "column", torch.float64),
    (32, "adam", "cayley", "tangent", torch.complex128),
    (96, "adam", "cayley", "tangent", torch.complex128),
    (32, "scalar", "polar", "tangent", torch.float64),
    (96, "scalar", "polar", "tangent", torch.float64),
    (96, "adam", "exponential", "lsi", torch.float64),
    (32, "momentum", "cayley", "tangent", torch.float64),
    (32, "sgd", "polar", "column", torch.complex128),
    (32, "scalar", "exponential", "lsi", torch.complex128),
]


@pytest.mark.parametrize(("n", "setting", "retraction", "sketch", "dtype"), EACH)
def test_a_step_waits_for_nothing_and_is_that_of_a_cpu(n, setting, retraction, sketch, dtype):
    kind, options = SETTINGS[setting]
    start = rotation(3, n, n, dtype=dtype)
    p = on_manifold(start, 2, retraction=retraction, sketch=sketch)
    q = on_manifold(start.cuda(), 2, retraction=retraction, sketch=sketch)
    grads = gradients(p, 3)
    feed(kind([p], lr=0.01, **options), p, grads)
    optimizer = kind([q], lr=0.01, **options)
    first, *rest = [grad.cuda() for grad in grads]
    feed(optimizer, q, [first])  # which makes the state, and waits for a probe of the point
    for grad in rest:
        q.grad = grad
        with no_waiting():
            optimizer.step()
    assert_within(q.cpu(), p, 1e-10)


@each_setting
def test_parameters_of_many_kinds_and_a_learning_rate_on_the_gpu_wait_for_nothing(kind, options):
    def parameter(n, k, dtype=torch.float32):
        p = on_manifold(rotation(n, n, dtype=dtype).cuda(), k)
        p.grad = torch.randn_like(p)
        return p

    alike = [parameter(16, 1) for _ in range(3)]
    groups = [
        {"params": [*alike, parameter(300, 1)]},
        {"params": [parameter(16, 2), parameter(24, 1, torch.complex64)], "maximize": True},
    ]
    optimizer = kind(groups, lr=torch.tensor(0.01, device="cuda"), **options)
    optimizer.step()
    with no_waiting():
        optimizer.step()
    assert optimizer.skipped_steps == 0


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.parametrize("kind", [ProjUNNRiemannianSGD, ProjUNNRiemannianAdam])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_a_bad_gradient_leaves_every_parameter_without_waiting(kind, options):
    sphere = geoopt.Sphere()
    params = [
        on_manifold(rotation(32, 32).cuda(), 2),
        geoopt.ManifoldParameter(sphere.random(3, 4).cuda(), manifold=sphere),
        torch.nn.Parameter(torch.randn(3, 4).cuda()),
    ]
    momentum = {"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}
    optimizer = kind(params, lr=0.01, skip_nonfinite="all", **momentum, **options)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()  # which makes the state, and waits
    for culprit in (None, *params):
        for p in params:
            p.grad = torch.randn_like(p)
        if culprit is not None:
            culprit.grad.view(-1)[-1] = torch.nan
        before = [p.detach().clone() for p in params]
        with no_waiting():
            optimizer.step()
        for p, value in zip(params, before, strict=True):
            assert torch.equal(p, value) == (culprit is not None)
    assert optimizer.skipped_steps == len(params)


@each_setting
def test_a_hundred_steps_wait_for_nothing_and_warn_of_what_is_off(kind, options):
    p = on_manifold(rotation(32, 32).cuda(), 2, sweep=0)
    optimizer = kind([p], lr=1e-4, **options)
    p.grad = torch.randn_like(p)
    optimizer.step()
    with torch.no_grad():
        p.mul_(2)
    with pytest.warns(UserWarning, match="is off its manifold"), no_waiting():
        feed(optimizer, p, [p.grad] * 100)


REAL = (torch.float32, torch.float64)


COMPLEX = (torch.complex64, torch.complex128)


KERNELS = {
    "sgd": (ProjUNNRiemannianSGD, {}, {"k": 1}),
    "momentum": (ProjUNNRiemannianSGD, {"momentum": 0.9, "dampening": 0.3}, {"k": 4}),
    "nesterov": (ProjUNNRiemannianSGD, {"momentum": 0.9, "nesterov": True}, {"k": 16, "sweep": 8}),
    "adam": (
        ProjUNNRiemannianAdam,
        {"second_moment": "elementwise"},
        {"k": 2, "retraction": "polar"},
    ),
    "amsgrad": (
        ProjUNNRiemannianAdam,
        {"amsgrad": True, "second_moment": "elementwise"},
        {"k": 1, "sketch": "lsi"},
    ),
    "scalar": (
        ProjUNNRiemannianAdam,
        {"second_moment": "scalar", "amsgrad": True},
        {"k": 3, "retraction": "cayley"},
    ),
    "angle": (ProjUNNRiemannianSGD, {"normalize": "angle"}, {"k": 2}),
    "spectral": (ProjUNNRiemannianSGD, {"normalize": "spectral"}, {"k": 4}),
}


needs_kernels = pytest.mark.skipif(
    "triton" not in backends.available(), reason="the Triton kernels cannot be used"
)


@needs_kernels
@pytest.mark.parametrize("shape", [(40, 40), (3, 64, 64), (700, 700)])
@pytest.mark.parametrize(
    ("setting", "dtype"),
    # Two dtypes of each, real and complex, single and double in turn.
    [
        (name, dtype)
        for i, name in enumerate(KERNELS)
        for dtype in (REAL[i % 2], COMPLEX[1 - i % 2])
    ],
)
def test_kernels_take_the_steps_of_the_reference(setting, dtype, shape):
    kind, options, manifold = KERNELS[setting]
    start = rotation(*shape, dtype=dtype)
    grads = [torch.randn(shape, dtype=dtype) / shape[-1] for _ in range(3)]
    points = {}
    for name in ("triton", "reference"):
        p = points[name] = on_manifold(start.cuda(), **manifold)
        with backends.use(name):
            feed(kind([p], lr=0.01, **options), p, [grad.cuda() for grad in grads])
    eps = torch.finfo(dtype).eps
    # Adam's first directions are signs, which small entries may change.
    bound = 1e3 * eps * (1 if kind is ProjUNNRiemannianSGD else 10)
    assert_within(points["triton"].cpu(), points["reference"].cpu(), bound)
    assert orthogonality_error(points["triton"].cpu()) < 50 * eps * shape[-1] ** 0.5
    assert not same_bits(points["triton"].cpu(), start)


@needs_kernels
def test_steps_of_other_threads_have_the_same_bits():
    start, grads = rotation(64, 64), [torch.randn(64, 64) for _ in range(20)]

    def trained(_=None):
        p = on_manifold(start.cuda(), 2)
        feed(ProjUNNRiemannianSGD([p], lr=0.01), p, [grad.cuda() for grad in grads])
        return p.detach()

    expected = trained()
    with ThreadPoolExecutor(4) as pool:
        assert all(same_bits(p, expected) for p in pool.map(trained, range(8)))


@needs_kernels
@pytest.mark.parametrize("setting", KERNELS)
@pytest.mark.parametrize(("n", "most"), [(512, 14), (64, 1)])
def test_a_step_launches_fourteen_kernels_at_most_and_one_of_small_matrices(setting, n, most):
    kind, options, manifold = KERNELS[setting]
    p = on_manifold(rotation(n, n).cuda(), **manifold)
    p.grad = torch.randn_like(p)
    optimizer = kind([p], lr=0.01, **options)
    optimizer.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    launched = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(launched) <= most, launched
