"""Layers stay orthogonal when they are trained, at learning rates that no one should use."""

import itertools
import math

import geoopt
import pytest
import torch

from geoopt_projunn import (
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    diagnose,
    metrics,
    nn,
)
from geoopt_projunn.linalg.dense import haar
from tests.nn._jacobian import assert_singular_values, jacobian, signal

STEPS = 200
OPTIMIZERS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 3.0}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 1.0, "momentum": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.3}),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
SIZES = {1: (5, 6), 2: (3, 4, (3, 4)), 3: (3, 2, (2, 3, 4))}
# Of 8 by 8 matrices, all of them: in = out, in < out and in > out, with and without a stride.
N = 8
CHANNELS = {
    1: {1: [(8, 8), (5, 8), (8, 5)], 2: [(4, 8), (3, 8), (4, 5)]},
    2: {1: [(8, 8), (5, 8), (8, 5)], 2: [(2, 8), (1, 8), (2, 5)]},
    3: {1: [(8, 8), (5, 8), (8, 5)], 2: [(1, 8), (1, 5)]},
}


def layers(kind, **options):
    """Yield layers of every dimension, kind of size, stride and channel count."""
    for d, stride in itertools.product((1, 2, 3), (1, 2)):
        for size, (ins, outs) in itertools.product(SIZES[d], CHANNELS[d][stride]):
            whole = size * stride if isinstance(size, int) else tuple(n * stride for n in size)
            yield getattr(nn, f"{kind}{d}d")(ins, outs, whole, stride, **options)


@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
@pytest.mark.parametrize("retraction", ["polar", "exponential"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["OrthogonalConv", "UnitaryConv"])
def test_every_layer_is_orthogonal_after_200_steps(kind, dtype, optimizer, retraction, sketch):
    # The matrices of all layers as one batch, along gradients that lead nowhere: the worst case.
    # What makes a layer orthogonal is that each of its matrices is, whichever it is.
    layer_dtype = dtype.to_complex() if kind == "UnitaryConv" else dtype
    all_layers = list(layers(kind, dtype=layer_dtype))
    assert all(layer.channels == N for layer in all_layers)
    weights = [
        p for layer in all_layers for name, p in layer.named_parameters() if "weight" in name
    ]
    manifold = LowRankUnitary(1, retraction=retraction, sketch=sketch)
    kinds = {p.dtype for p in weights}
    pools = [
        geoopt.ManifoldParameter(haar(48, N, N, dtype=of_dtype), manifold=manifold)
        for of_dtype in kinds
    ]
    make, settings = OPTIMIZERS[optimizer]
    stepper = make(pools, **settings)
    for _ in range(STEPS):
        for pool in pools:
            pool.grad = torch.randn_like(pool)
        stepper.step()
    with torch.no_grad():
        for p in weights:
            pool = next(pool for pool in pools if pool.dtype == p.dtype)
            p.copy_(pool[torch.randint(len(pool), (len(p),))])
    for layer in all_layers:
        assert_singular_values(layer, TOLERANCES[dtype])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["OrthogonalConv", "UnitaryConv"])
def test_a_network_is_orthogonal_after_200_steps_of_its_own(kind, d, optimizer):
    dtype = torch.float32 if kind == "OrthogonalConv" else torch.complex64
    make = getattr(nn, f"{kind}{d}d")
    network = torch.nn.Sequential(
        make(2, 2 ** (d + 1), 4, 2, False, init="haar", dtype=dtype),
        make(2 ** (d + 1), 2 ** (d + 1), 2, 1, False, init="haar", dtype=dtype),
    )
    x, target = signal(network[0], batch=8), torch.randn(8, 2 ** (d + 1), *(2,) * d, dtype=dtype)
    rule, settings = OPTIMIZERS[optimizer]
    stepper = rule(network.parameters(), **settings)
    before = [jacobian(layer) for layer in network]
    for _ in range(STEPS):
        stepper.zero_grad()
        (network(x) - target).abs().square().sum().backward()
        stepper.step()
    assert stepper.skipped_steps == 0
    for layer, start in zip(network, before, strict=True):
        assert (jacobian(layer) - start).norm() > 0.1 * math.sqrt(len(start))
        assert_singular_values(layer, 1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, geoopt.optim.RiemannianSGD])
def test_geoopts_optimizer_keeps_a_layer_orthogonal_and_torchs_does_not(optimizer):
    layer = nn.OrthogonalConv2d(3, 3, 4, bias=False, init="haar", dtype=torch.float64)
    stepper = optimizer(layer.parameters(), lr=0.1)
    for _ in range(5):
        stepper.zero_grad()
        layer(signal(layer)).pow(4).sum().backward()
        stepper.step()
    error = (torch.linalg.svdvals(jacobian(layer)) - 1).abs().max()
    assert (error < 1e-12) == (optimizer is not torch.optim.SGD)


def test_a_layer_learns_the_orthogonal_convolution_that_made_its_data():
    torch.manual_seed(1)
    teacher = nn.OrthogonalConv2d(4, 4, 4, init="haar")
    student = nn.OrthogonalConv2d(4, 4, 4)
    with torch.no_grad():  # a path to the teacher exists only for matrices of determinant 1
        signs = torch.linalg.det(teacher.weight_real).sign()
        teacher.weight_real[:, 0] *= signs[:, None]
    stepper = ProjUNNRiemannianSGD(student.parameters(), lr=0.3)
    for _ in range(400):
        stepper.zero_grad()
        x = signal(student, batch=32)
        ((student(x) - teacher(x)).square().mean((0, 2, 3)).sum()).backward()
        stepper.step()
    difference = jacobian(student) - jacobian(teacher)
    assert torch.linalg.matrix_norm(difference, 2) < 0.02


def test_a_layer_without_pairs_of_frequencies_trains():
    layer = nn.OrthogonalConv2d(4, 4, 2, init="haar")
    assert layer.weight.numel() == 0
    stepper = ProjUNNRiemannianAdam(layer.parameters(), lr=0.1)
    for _ in range(5):
        stepper.zero_grad()
        layer(signal(layer)).pow(4).sum().backward()
        stepper.step()
    assert_singular_values(layer, 1e-5)
    assert diagnose(layer)[1].orthogonality_error == 0
    for exact in (False, True):
        assert metrics(layer, stepper, exact=exact)["orthogonality_error/weight"] == 0
    nn.project_(layer)


def test_all_frequencies_take_one_batched_step():
    layer = nn.OrthogonalConv2d(4, 4, 8)
    stepper = ProjUNNRiemannianSGD(layer.parameters(), lr=0.1)
    layer(signal(layer)).pow(4).sum().backward()
    stepper.step()
    assert [stepper.state[p]["step"].shape for p in (layer.weight_real, layer.weight)] == [
        (4,),
        (30,),
    ]
