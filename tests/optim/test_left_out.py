"""What a step leaves out of a direction."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import (
    assert_within,
    feed,
    gradients,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")


def skewh(a):
    return (a - a.mH) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("shape", [(9, 4), (6, 6)])
def test_what_stays_in_the_feedback_of_a_rectangle_is_what_a_step_leaves_out(shape, k, dtype):
    """A step along C = D - left moves x as the sketch of D does."""
    manifold = (LowRankUnitary if shape[0] == shape[1] else LowRankStiefel)(k=k)
    p = geoopt.ManifoldParameter(manifold.random(*shape, dtype=dtype), manifold=manifold)
    x, (d,) = p.detach().as_subclass(torch.Tensor).clone(), gradients(p, 1)
    sketched = manifold.sketch_direction(x[None], d[None], torch.zeros(1, dtype=torch.int64))
    rows, core = sketched.rows, skewh(sketched.core[0])
    followed = (core if rows is None else rows[0].mH @ core @ rows[0]) @ x
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, error_feedback=0.5)
    feed(optimizer, p, [d])
    c = d - optimizer.state[p]["feedback_buffer"] / 0.5
    scale = 1.0 if shape[0] == shape[1] else 2.0
    assert_within(scale * skewh(c @ x.mH) @ x, followed, 1e-13)


@pytest.mark.parametrize("sketch", ["lsi", "column"])
def test_a_normal_direction_of_the_papers_sketches(sketch):
    p = unitary_parameter(8, 8, sketch=sketch, k=2)
    before = p.detach().clone()
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize="angle"), p, [before.clone()])
    assert_within(p, before, 1e-5)


@pytest.mark.parametrize("n", [8, 16, 64, 300])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("how", ["qr", "svd"])
def test_a_normal_gradient_at_a_point_of_a_decomposition(n, k, how):
    a = torch.randn(n, n, dtype=torch.float64)
    if how == "qr":
        x = torch.linalg.qr(a).Q
    else:
        u, _, vh = torch.linalg.svd(a)
        x = u @ vh
    p = geoopt.ManifoldParameter(x.contiguous().clone(), manifold=LowRankUnitary(k, sweep=0))
    h = torch.randn(n, n, dtype=torch.float64)
    feed(ProjUNNRiemannianSGD([p], lr=0.5, normalize="angle"), p, [x @ (h + h.mT)])
    assert_within(p, x, 1e-12)


def test_a_normal_gradient_moves_nothing_with_tangent_momentum():
    p = unitary_parameter(8, 8)
    x, h = p.detach().clone(), torch.randn(8, 8)
    options = {"momentum": 0.9, "momentum_space": "tangent", "normalize": "angle"}
    feed(ProjUNNRiemannianSGD([p], lr=0.5, **options), p, [x @ (h + h.mT)])
    assert_within(p, x, 1e-5)
