"""Steps in radians along gradients that have no direction on the manifold, or hardly any."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._helpers import (
    assert_same_bits,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)
from ._radians import angles, each_dtype, each_name, each_sketch

pytestmark = pytest.mark.usefixtures("each_way")


@each_sketch
@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
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
@pytest.mark.parametrize("k", [1, 8])
def test_a_normal_gradient_of_a_point_of_many_units_of_rounding_moves_nothing(k, normalize):
    """Points from a decomposition in float64 are off by more units the larger they are."""
    start = torch.linalg.svd(torch.randn(300, 300, dtype=torch.float64)).U
    p, normal = on_manifold(start, k, sweep=0), torch.randn(300, 300, dtype=torch.float64)
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize=normalize), p, [(normal + normal.mT) @ start])
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
