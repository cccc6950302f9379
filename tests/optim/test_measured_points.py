"""Which points are measured, and how far off they may be."""

import gc
import warnings
import weakref

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    feed,
    gradients,
    unitary_parameter,
)


@pytest.mark.parametrize(("error", "fits"), [(5e-5, True), (2e-4, False)])
def test_how_far_off_a_first_step_may_begin(error, fits):
    p = unitary_parameter(8, 8, dtype=torch.float64)
    with torch.no_grad():
        p.mul_((1 + error) ** 0.5)  # xᴴx - I is `error` times I
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    if fits:
        feed(optimizer, p, gradients(p, 1))
    else:
        with pytest.raises(ValueError, match="before its first step"):
            feed(optimizer, p, gradients(p, 1))


@pytest.mark.parametrize(("error", "warns"), [(6e-4, False), (1.5e-3, True)])
def test_how_far_off_a_point_may_be_without_a_warning(error, warns):
    p = unitary_parameter(64, 64, dtype=torch.float64, sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=1e-6)
    feed(optimizer, p, gradients(p, 1))
    with torch.no_grad():
        p.mul_((1 + error) ** 0.5)  # xᴴx - I is `error` times I
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        feed(optimizer, p, gradients(p, 100))
    assert bool(record) == warns


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_worst_matrix_of_a_single_batch_is_named(kind):
    p = unitary_parameter(3, 6, 6, sweep=0)
    optimizer = kind([p], lr=1e-3)
    feed(optimizer, p, gradients(p, 10))
    with torch.no_grad():
        p[2].mul_(2)
    with pytest.warns(UserWarning, match="off its manifold"):
        feed(optimizer, p, gradients(p, 100))


def test_a_parameter_that_has_lost_its_manifold_and_rests_is_not_measured():
    p, q = unitary_parameter(4, 4), unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    p.grad = torch.randn_like(p)
    feed(optimizer, q, gradients(q, 1))
    p.grad = None
    del p.manifold
    p.__class__ = torch.nn.Parameter
    feed(optimizer, q, gradients(q, 120))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_has_no_values_is_not_measured(device):
    shape = (0, 4, 4) if device == "cpu" else (4, 4)
    p, q = unitary_parameter(*shape), unitary_parameter(4, 4)
    if device == "meta":
        p = geoopt.ManifoldParameter(p.detach().to("meta"), manifold=p.manifold)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    p.grad = torch.zeros_like(p)
    feed(optimizer, q, gradients(q, 120))


def test_a_parameter_that_left_the_optimizer_is_freed():
    p, q = unitary_parameter(4, 4, sweep=0), unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=1e-3)
    p.grad = torch.randn_like(p)
    feed(optimizer, q, gradients(q, 1))
    with torch.no_grad():
        p.mul_(2)
    with pytest.warns(UserWarning, match="off its manifold"):
        feed(optimizer, q, gradients(q, 100))
    gone = weakref.ref(p)
    (group,) = optimizer.param_groups
    group["params"].remove(p)
    del optimizer.state[p], p
    feed(optimizer, q, gradients(q, 120))
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_was_away_is_measured_again(kind):
    p, q = unitary_parameter(4, 4, sweep=0), unitary_parameter(4, 4)
    optimizer = kind([p, q], lr=1e-3)
    p.grad = torch.randn_like(p)
    feed(optimizer, q, gradients(q, 1))
    (group,) = optimizer.param_groups
    group["params"].remove(p)
    feed(optimizer, q, gradients(q, 60))
    group["params"].append(p)
    with torch.no_grad():
        p.mul_(2)
    with pytest.warns(UserWarning, match="off its manifold"):
        feed(optimizer, q, gradients(q, 110))
