"""One optimizer over parameters on many manifolds, and under torch.compile."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_same_state,
    eps,
    orthogonality_error,
    rotation,
    unitary_parameter,
)


class Everything(torch.nn.Module):
    """A loss over parameters of every kind, with a target for each."""

    def __init__(self):
        super().__init__()
        sphere, ball = geoopt.Sphere(), geoopt.PoincareBall()
        stiefel = geoopt.EuclideanStiefel()
        self.unitary = unitary_parameter(8, 8, k=2)
        self.batch = unitary_parameter(3, 4, 4, dtype=torch.complex64, retraction="polar")
        self.sphere = geoopt.ManifoldParameter(sphere.random(5, 4), manifold=sphere)
        self.ball = geoopt.ManifoldParameter(ball.random(5, 3), manifold=ball)
        self.stiefel = geoopt.ManifoldParameter(stiefel.random(6, 3), manifold=stiefel)
        self.linear = torch.nn.Linear(4, 3)
        self.targets = {
            "unitary": rotation(8, 8),
            "batch": rotation(3, 4, 4, dtype=torch.complex64),
            "sphere": sphere.random(5, 4),
            "ball": ball.random(5, 3),
            "stiefel": stiefel.random(6, 3),
            "linear.weight": torch.randn(3, 4),
            "linear.bias": torch.randn(3),
        }

    def losses(self):
        return {
            name: (p - self.targets[name]).abs().square().sum()
            for name, p in self.named_parameters()
        }


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_part_of_a_mixed_loss_goes_down_on_its_own_manifold(kind):
    model = Everything()
    optimizer = kind(model.parameters(), lr=0.03, stabilize=10)
    first = {name: loss.item() for name, loss in model.losses().items()}
    for _ in range(100):
        optimizer.zero_grad()
        sum(model.losses().values()).backward()
        optimizer.step()
    last = {name: loss.item() for name, loss in model.losses().items()}
    assert first.keys() == last.keys() == model.targets.keys()
    assert all(last[name] < 0.8 * first[name] for name in last)
    assert orthogonality_error(model.unitary) < 20 * eps(torch.float32)
    assert orthogonality_error(model.batch) < 20 * eps(torch.float32)
    for p in (model.sphere, model.ball, model.stiefel):
        assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_all_groups_are_stepped_whatever_they_hold(kind):
    model = Everything()
    groups = [{"params": [p], "lr": 0.1 / (i + 1)} for i, p in enumerate(model.parameters())]
    optimizer = kind(groups)
    before = [p.detach().clone() for p in model.parameters()]
    sum(model.losses().values()).backward()
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [True] * 7


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_order_of_parameters_does_not_matter(kind):
    forward = Everything()
    backward = copy.deepcopy(forward)
    left = kind(forward.parameters(), lr=0.03)
    right = kind(reversed(list(backward.parameters())), lr=0.03)
    for _ in range(3):
        for model, optimizer in ((forward, left), (backward, right)):
            optimizer.zero_grad()
            sum(model.losses().values()).backward()
            optimizer.step()
    for p, q in zip(forward.parameters(), backward.parameters(), strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {"lr": 0.03, "momentum": 0.9}),
        (ProjUNNRiemannianAdam, {"lr": 0.03}),
    ],
)
def test_a_compiled_function_takes_the_eager_step(kind, options):
    torch._dynamo.reset()
    eager = Everything()
    compiled = copy.deepcopy(eager)
    left, right = kind(eager.parameters(), **options), kind(compiled.parameters(), **options)

    @torch.compile(backend="eager")
    def step():
        right.step()

    for _ in range(3):
        for model, optimizer in ((eager, left), (compiled, right)):
            optimizer.zero_grad()
            sum(model.losses().values()).backward()
        left.step()
        step()
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert_same_bits(p, q)
        assert_same_state(left.state[p], right.state[q])
    assert isinstance(compiled.unitary.manifold, LowRankUnitary)
    assert orthogonality_error(compiled.unitary) < 20 * eps(torch.float32)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_compiled_model_is_trained_in_place(kind):
    torch._dynamo.reset()
    weight = unitary_parameter(6, 6)
    forward = torch.compile(lambda x: x @ weight, backend="eager")
    optimizer = kind([weight], lr={ProjUNNRiemannianSGD: 1.0, ProjUNNRiemannianAdam: 0.05}[kind])
    x, target = torch.randn(20, 6), rotation(6, 6)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (forward(x) - x @ target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
