"""Points stored as views, and gradients near the ends of the range of their dtype."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import (
    SKETCHES,
    assert_within,
    feed,
    on_manifold,
    orthogonality_error,
)


@pytest.mark.parametrize("n", [24, 260])
@pytest.mark.parametrize("view", [torch.conj, lambda x: x.mH, lambda x: x.mT])
def test_views_are_stepped_as_what_they_are(view, n):
    start = view(LowRankUnitary().random(n, n, dtype=torch.complex128).data)
    grads = [torch.randn(n, n, dtype=torch.complex128) / n for _ in range(3)]
    p, q = (
        geoopt.ManifoldParameter(x, manifold=LowRankUnitary(1))
        for x in (start, start.clone(memory_format=torch.contiguous_format).resolve_conj())
    )
    for parameter in (p, q):
        feed(ProjUNNRiemannianSGD([parameter], lr=0.1), parameter, grads)
    assert_within(p, q, 1e-12)
    assert orthogonality_error(p) < 1e-11


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_gradients_of_any_size_are_followed(scale, sketch):
    start = LowRankUnitary().random(24, 24, dtype=torch.float64).data
    grads = [torch.randn(24, 24, dtype=torch.float64) / 24]
    p, q = (on_manifold(start, sketch=sketch) for _ in range(2))
    feed(ProjUNNRiemannianSGD([p], lr=0.1), p, grads)
    feed(ProjUNNRiemannianSGD([q], lr=0.1 / scale), q, [scale * g for g in grads])
    assert_within(q, p, 1e-9)


# Squares leave the range of double precision: the test vectors may differ, but not the length.
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("scale", [1e-165, 1e157])
def test_gradients_whose_squares_overflow_are_followed_too(scale, sketch):
    p = on_manifold(LowRankUnitary().random(24, 24, dtype=torch.float64).data, sketch=sketch)
    start = p.detach().clone()
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1 / scale)
    feed(optimizer, p, [scale * torch.randn(24, 24, dtype=torch.float64)])
    assert optimizer.skipped_steps == 0
    assert (p.detach() - start).abs().max() > 1e-2
    assert orthogonality_error(p) < 1e-12
