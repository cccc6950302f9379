"""Steps whose products read a matrix once are the steps of torch's own products."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.linalg import streams

from ._helpers import OPTIMIZERS, SKETCHES, assert_within, feed, on_manifold

pytestmark = pytest.mark.skipif(not streams.BUILT, reason="the extension is not built")


@pytest.mark.parametrize("shape", [(260, 260), (40, 41, 41)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_the_same_to_rounding(kind, sketch, k, dtype, shape):
    start = LowRankUnitary().random(*shape, dtype=dtype).data
    with torch.no_grad():
        assert streams.serve(start)
    grads = [torch.randn(shape, dtype=dtype) / shape[-1] for _ in range(3)]
    p, q = (on_manifold(start, k=k, sketch=sketch, sweep=2) for _ in range(2))
    feed(kind([p], lr=0.1), p, grads)
    with streams.disabled():
        feed(kind([q], lr=0.1), q, grads)
    assert_within(p, q, 1e-12)
    assert (p.detach() - start).abs().max() > 1e-5
