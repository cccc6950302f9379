"""What makes a parameter of another kind is seen in the second of a list, too."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import (
    assert_same_bits,
    assert_within,
    feed,
    on_manifold,
    rotation,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")


def step_both(optimizer, *params):
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()


def fewer_points(q):
    q.data = q.data[:2].clone()


def more_points_than_gradients(q):
    q.data, q.grad = q.data[:2].clone(), None
    q.grad = torch.randn_like(q)
    q.data = rotation(3, 4, 4)


def other_precision(q):
    q.data = q.data.double()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (fewer_points, ValueError, "before the parameter got other values"),
        (more_points_than_gradients, ValueError, "before the parameter got other values"),
        (other_precision, TypeError, "`grad` of"),
    ],
)
def test_values_that_do_not_fit_the_gradient_of_the_second(change, error, match):
    p, q = unitary_parameter(3, 4, 4), unitary_parameter(3, 4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    step_both(optimizer, p, q)
    p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
    change(q)
    before = p.detach().clone()
    with pytest.raises(error, match=match):
        optimizer.step()
    assert_same_bits(p, before)


def test_a_second_one_that_was_converted_after_its_first_step():
    p, q = unitary_parameter(4, 4, dtype=torch.float64), unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    step_both(optimizer, p, q)
    q.data, q.grad = q.data.double(), None
    p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
    with pytest.raises(TypeError, match="converted after its first step"):
        optimizer.step()


def test_a_second_one_whose_state_is_of_fewer_matrices():
    p, q = unitary_parameter(3, 4, 4), unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    step_both(optimizer, p, q)
    q.data, q.grad = rotation(3, 4, 4), None
    p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
    with pytest.raises(ValueError, match="must have shape"):
        optimizer.step()


def test_gradients_by_rows_and_by_columns():
    p, q = unitary_parameter(6, 6), unitary_parameter(6, 6)
    alone = on_manifold(p.detach())
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    p.grad, q.grad = torch.randn(6, 6), torch.randn(6, 6).mT
    feed(ProjUNNRiemannianSGD([alone], lr=0.1), alone, [p.grad])
    optimizer.step()
    assert_same_bits(p, alone)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("conjugated", [(False, True), (True, False)])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_one_gradient_of_two_is_conjugated_lazily(conjugated, options):
    params = [unitary_parameter(4, 4, dtype=torch.complex64) for _ in range(2)]
    others = [on_manifold(p.detach()) for p in params]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1, **options)
    for p, is_conj in zip(params, conjugated, strict=True):
        grad = torch.randn(4, 4, dtype=torch.complex64)
        p.grad = grad.conj() if is_conj else grad
    optimizer.step()
    for p, q in zip(params, others, strict=True):
        feed(ProjUNNRiemannianSGD([q], lr=0.1, **options), q, [p.grad.resolve_conj()])
        assert_within(p, q, 1e-6)


@pytest.mark.parametrize("lazy", ["conjugated", "by columns"])
def test_a_step_has_the_bits_that_it_has_alone(lazy):
    params = [unitary_parameter(6, 6, dtype=torch.complex64) for _ in range(2)]
    alone = on_manifold(params[0].detach())
    for p in params:
        p.grad = torch.randn_like(p)
    q = params[1]
    q.grad = q.grad.conj() if lazy == "conjugated" else q.grad.mT
    feed(ProjUNNRiemannianSGD([alone], lr=0.1), alone, [params[0].grad])
    ProjUNNRiemannianSGD(params, lr=0.1).step()
    assert_same_bits(params[0], alone)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LowRankUnitary(2), LowRankUnitary(2, retraction="cayley")),
        (LowRankUnitary(2), LowRankUnitary(2, sketch="lsi")),
        (LowRankUnitary(2, sweep=0), LowRankUnitary(2, sweep=2)),
        (LowRankUnitary(2), LowRankUnitary(1)),
        (LowRankUnitary(2), LowRankStiefel(2)),
    ],
)
def test_parameters_on_other_manifolds_are_stepped_as_alone(first, second):
    params = [geoopt.ManifoldParameter(rotation(6, 6), manifold=one) for one in (first, second)]
    with torch.no_grad():
        for p in params:
            p.mul_(1 + 1e-6)
    alone = [copy.deepcopy(p) for p in params]
    for p, q in zip(params, alone, strict=True):
        p.grad = torch.randn_like(p)
        feed(ProjUNNRiemannianSGD([q], lr=0.5), q, [p.grad])
    ProjUNNRiemannianSGD(params, lr=0.5).step()
    for p, q in zip(params, alone, strict=True):
        assert_same_bits(p, q)
