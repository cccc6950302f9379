"""Small kernels stay orthogonal when they are trained, however large the steps and deep the net."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, nn
from tests._asserts import assert_within
from tests.nn._jacobian import jacobian

OPTIMIZERS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 3.0}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 1.0, "momentum": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.3}),
}


@pytest.mark.parametrize("k", [1, 4, None])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_are_orthogonal_at_every_size_after_training(optimizer, k):
    network = torch.nn.Sequential(
        nn.BlockOrthogonalConv2d(2, 9, 3, bias=False, k=k),
        nn.BlockOrthogonalConv2d(9, 8, (2, 3), 2, bias=False, k=k),
        nn.BlockOrthogonalConv2d(8, 8, 3, bias=False, k=k, init="identity"),
        nn.BlockOrthogonalConv2d(8, 33, 3, 2, bias=False, k=k),
    )
    make, settings = OPTIMIZERS[optimizer]
    stepper = make(network.parameters(), **settings)
    before = [p.detach().clone() for p in stepper.param_groups[0]["params"]]
    x = torch.randn(4, 2, 12, 12)
    target = torch.randn(4, 33, 3, 3)
    for _ in range(40):
        stepper.zero_grad()
        (network(x) - target).square().sum().backward()
        stepper.step()
    assert stepper.skipped_steps == 0
    for p, start in zip(stepper.param_groups[0]["params"], before, strict=True):
        assert (p - start).norm() > 0.1 * start.norm()
    for layer in network:
        for size in ((4, 4), (4, 6)):
            assert_within(torch.linalg.svdvals(jacobian(layer, size)), 1.0, 2e-5)
    assert max(nn.orthogonality_errors(network, exact=True).values()) < 2e-5


def test_sequences():
    layer = nn.BlockOrthogonalConv1d(4, 4, 5)
    stepper = ProjUNNRiemannianAdam(layer.parameters(), lr=0.3)
    start = jacobian(layer, (8,))
    for _ in range(50):
        stepper.zero_grad()
        layer(torch.randn(2, 4, 16)).pow(4).sum().backward()
        stepper.step()
    assert (jacobian(layer, (8,)) - start).norm() > 1.0
    for size in (5, 8):
        assert_within(torch.linalg.svdvals(jacobian(layer, (size,))), 1.0, 2e-5)


def test_a_layer_learns_the_small_convolution_that_made_its_data():
    torch.manual_seed(1)
    teacher = nn.BlockOrthogonalConv2d(6, 6, 3, bias=False)
    student = nn.BlockOrthogonalConv2d(6, 6, 3, bias=False, k=2)
    with torch.no_grad():  # a path to the teacher exists only for one sign of the determinant
        signs = torch.linalg.det(teacher.weight) * torch.linalg.det(student.weight)
        teacher.weight[0] *= signs.sign()
    stepper = ProjUNNRiemannianSGD(student.parameters(), lr=0.1)
    losses = []
    for _ in range(300):
        x = torch.randn(8, 6, 4, 4)
        stepper.zero_grad()
        loss = (student(x) - teacher(x)).square().sum(1).mean()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-4 * losses[0]


def sort_pairs(x):
    """Sort each pair of channels, which preserves norms and is not linear."""
    left, right = x.chunk(2, 1)
    return torch.cat([torch.maximum(left, right), torch.minimum(left, right)], 1)


@pytest.mark.parametrize("init", ["haar", "identity"])
def test_fifty_layers_keep_norms_and_train(init):
    def layer():
        return nn.BlockOrthogonalConv2d(4, 4, 3, bias=False, init=init)

    layers = torch.nn.ModuleList(layer() for _ in range(50))

    def features(x):
        for layer in layers:
            x = sort_pairs(layer(x))
        return x

    # The readout does not learn: what fits the labels is in the fifty layers.
    readout = torch.randn(4 * 5 * 5, 2) / 5
    x, labels = torch.randn(16, 4, 5, 5), torch.arange(16) % 2
    stepper = ProjUNNRiemannianSGD(layers.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(40):
        stepper.zero_grad()
        loss = torch.nn.functional.cross_entropy(features(x).flatten(1) @ readout, labels)
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    probe = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = features(probe)
    assert_within(y.norm() / probe.norm(), 1.0, 1e-4)
    direction = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, probe, direction)
    assert_within(gradient.norm() / direction.norm(), 1.0, 1e-4)
