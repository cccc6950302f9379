"""Parameters on geoopt's manifolds take the steps of geoopt.optim, bit for bit."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import OPTIMIZERS, assert_same_bits, assert_same_state, bystander, without_counters

# geoopt's SymmetricPositiveDefinite scripts a function when it is first used.
SGD = (ProjUNNRiemannianSGD, geoopt.optim.RiemannianSGD)
ADAM = (ProjUNNRiemannianAdam, geoopt.optim.RiemannianAdam)

SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.7, "weight_decay": 0.1, "stabilize": 3},
    {"stabilize": 2},
]
ADAM_OPTIONS = [
    {},
    {"betas": (0.5, 0.7), "eps": 1e-3},
    {"amsgrad": True},
    {"weight_decay": 0.1},
    {"amsgrad": True, "weight_decay": 0.1, "stabilize": 3},
]
CASES = [(*SGD, options) for options in SGD_OPTIONS] + [
    (*ADAM, options) for options in ADAM_OPTIONS
]

WIDE = {"dtype": torch.float64}
MANIFOLDS = {
    "Sphere": (geoopt.Sphere(), (3, 6), {}),
    "PoincareBall": (geoopt.PoincareBall(c=torch.tensor(1.0).double()), (3, 4), WIDE),
    "CanonicalStiefel": (geoopt.CanonicalStiefel(), (2, 6, 3), {}),
    "EuclideanStiefel": (geoopt.EuclideanStiefel(), (6, 3), {}),
    "Lorentz": (geoopt.Lorentz(k=torch.tensor(1.0).double()), (3, 5), WIDE),
    "SPD": (geoopt.SymmetricPositiveDefinite(), (4, 4), WIDE),
    "Euclidean": (geoopt.Euclidean(ndim=1), (3, 4), {}),
    "ProductManifold": (
        geoopt.ProductManifold(
            (geoopt.Sphere(), 4), (geoopt.PoincareBall(), 3), (geoopt.Euclidean(), (2, 2))
        ),
        (5, 11),
        {},
    ),
    "Scaled(LowRankUnitary)": (geoopt.Scaled(LowRankUnitary(k=2), 2.0), (6, 6), {}),
    "Scaled(Sphere)": (geoopt.Scaled(geoopt.Sphere(), 0.5), (3, 6), {}),
}


def point(name):
    manifold, shape, options = MANIFOLDS[name]
    if name in ("Lorentz",):  # it draws no points of its own
        return manifold.projx(torch.randn(shape, **options))
    return manifold.random(*shape, **options).as_subclass(torch.Tensor).detach()


def twins(name):
    start, manifold = point(name), MANIFOLDS[name][0]
    return [geoopt.ManifoldParameter(start.clone(), manifold=manifold) for _ in range(2)]


def gradient_of(p, target):
    """Return the gradient at p of a smooth loss, as a fresh tensor."""
    leaf = p.detach().clone().requires_grad_()
    loss = (leaf - target).abs().square().sum() + (leaf.abs() ** 3).sum() / 10
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def run_both(kind, reference, options, name, steps=8, sign=1.0):
    ours, theirs = twins(name)
    target = point(name)
    optimizer = kind([ours, bystander()], lr=0.02, **options)
    options = {key: value for key, value in options.items() if key != "maximize"}
    expected = reference([theirs], lr=0.02, **options)
    start = ours.detach().clone()
    for _ in range(steps):
        ours.grad = gradient_of(ours, target)
        theirs.grad = sign * gradient_of(theirs, target)
        optimizer.step()
        expected.step()
    return ours, theirs, optimizer, expected, start


@pytest.mark.parametrize("name", MANIFOLDS)
@pytest.mark.parametrize(("kind", "reference", "options"), CASES)
def test_points_and_their_state_equal_those_of_geoopt(kind, reference, options, name):
    ours, theirs, optimizer, expected, start = run_both(kind, reference, options, name)
    assert torch.isfinite(theirs).all()
    assert not torch.equal(theirs, start)
    assert_same_bits(ours, theirs)
    assert_same_state(without_counters(optimizer.state[ours]), expected.state[theirs])


@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_complex_points_of_another_manifold_equal_those_of_geoopt(options):
    start, target = (geoopt.UpperHalf().random(2, 3, 3, dtype=torch.complex128) for _ in "ab")
    ours, theirs = (
        geoopt.ManifoldParameter(start.clone(), manifold=geoopt.UpperHalf()) for _ in "ab"
    )
    optimizer = ProjUNNRiemannianSGD([ours, bystander()], lr=0.02, **options)
    expected = geoopt.optim.RiemannianSGD([theirs], lr=0.02, **options)
    for _ in range(5):
        ours.grad, theirs.grad = gradient_of(ours, target), gradient_of(theirs, target)
        optimizer.step()
        expected.step()
    assert not torch.equal(theirs, start)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("name", MANIFOLDS)
@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_maximize_is_geoopt_descending_on_the_negated_loss(kind, reference, name):
    options = {"maximize": True, "weight_decay": 0.1}
    ours, theirs, *_ = run_both(kind, reference, options, name, sign=-1.0)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}])
@pytest.mark.parametrize("name", MANIFOLDS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_leaves_the_gradient_as_it_is(kind, name, options):
    p, _ = twins(name)
    p.grad = gradient_of(p, torch.zeros_like(p))
    grad, before = p.grad, p.grad.clone()
    kind([p, bystander()], lr=0.02, **options).step()
    assert p.grad is grad
    assert_same_bits(grad, before)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_a_learning_rate_may_be_a_tensor(kind, reference):
    ours, theirs = twins("Sphere")
    target = torch.ones_like(ours).detach()
    optimizer = kind([ours, bystander()], lr=torch.tensor(0.125))
    expected = reference([theirs], lr=0.125)
    for _ in range(4):
        ours.grad, theirs.grad = gradient_of(ours, target), gradient_of(theirs, target)
        optimizer.step()
        expected.step()
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_groups_keep_their_own_options_and_their_own_stabilize(kind, reference):
    names = ["Sphere", "PoincareBall", "EuclideanStiefel"]
    pairs = [twins(name) for name in names]
    targets = [point(name) for name in names]

    def groups(side):
        return [
            {"params": [pairs[0][side]], "lr": 0.05, "stabilize": 2},
            {"params": [pairs[1][side]], "lr": 0.01, "weight_decay": 0.1},
            {"params": [pairs[2][side]], "stabilize": None},
        ]

    optimizer = kind([*groups(0), {"params": [bystander()]}], lr=0.02, stabilize=3)
    expected = reference(groups(1), lr=0.02, stabilize=3)
    for _ in range(7):
        for (ours, theirs), target in zip(pairs, targets, strict=True):
            ours.grad, theirs.grad = gradient_of(ours, target), gradient_of(theirs, target)
        optimizer.step()
        expected.step()
    for ours, theirs in pairs:
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_stabilize_now_equals_geoopt_and_mends_points_and_buffers(options):
    ours, theirs, optimizer, expected, _ = run_both(*SGD, options, "EuclideanStiefel")
    with torch.no_grad():
        for p in (ours, theirs):
            p.mul_(1.01)
    optimizer.stabilize()
    expected.stabilize()
    assert_same_bits(ours, theirs)
    assert_same_state(without_counters(optimizer.state[ours]), expected.state[theirs])
    assert ours.manifold.check_point_on_manifold(ours.detach())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_stabilize_mends_every_manifold_after_that_many_steps(kind):
    sphere, _ = twins("Sphere")
    unitary = bystander()
    optimizer = kind([sphere, unitary], lr=1e-4, stabilize=2)
    with torch.no_grad():
        sphere.mul_(1.01)
    for expected in (False, True):
        for p in (sphere, unitary):
            p.grad = torch.randn_like(p)
        if not expected:
            optimizer.step()
            with torch.no_grad():
                unitary.mul_(1.01)
        else:
            optimizer.step()
        assert bool(unitary.manifold.check_point_on_manifold(unitary.detach())) is expected
    assert sphere.manifold.check_point_on_manifold(sphere.detach())


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_stabilize_reaches_parameters_that_have_no_gradient(kind, reference):
    ours, theirs = twins("EuclideanStiefel")
    first, second = twins("Sphere")
    optimizer = kind([ours, first, bystander()], lr=0.01, stabilize=1)
    expected = reference([theirs, second], lr=0.01, stabilize=1)
    target = torch.ones_like(ours).detach()
    for round_ in range(2):
        first.grad, second.grad = (gradient_of(p, torch.ones_like(p)) for p in (first, second))
        if round_ == 0:
            ours.grad, theirs.grad = gradient_of(ours, target), gradient_of(theirs, target)
        else:
            ours.grad = theirs.grad = None
            with torch.no_grad():
                ours.mul_(1.01)
                theirs.mul_(1.01)
        optimizer.step()
        expected.step()
    assert_same_bits(ours, theirs)
