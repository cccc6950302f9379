"""The smallest matrices, and batches without any."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary

from ._helpers import (
    OPTIMIZERS,
    RETRACTIONS,
    eps,
    near_identity,
    orthogonality_error,
    unitary_parameter,
)

pytestmark = [
    pytest.mark.usefixtures("each_way"),
    pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped"),
]


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("n", "k"), [(1, None), (2, 1), (2, None), (3, 1), (4, 2), (5, 2)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_smallest_matrices_are_stepped_downhill(kind, n, k, dtype, retraction):
    p = unitary_parameter(n, n, dtype=dtype, k=k, retraction=retraction)
    target = near_identity(n, dtype) @ p.detach()
    optimizer = kind([p], lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (p - target).abs().square().sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert orthogonality_error(p) < 100 * eps(dtype)
    if (n, dtype) == (1, torch.float64):  # a sign has nowhere to go
        assert losses[-1] == losses[0]
    else:
        assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_empty_batch_is_stepped_without_complaint(kind):
    p = geoopt.ManifoldParameter(torch.zeros(0, 6, 6), manifold=LowRankUnitary())
    q = unitary_parameter(6, 6)
    before = q.detach().clone()
    optimizer = kind([p, q], lr=0.1)
    p.grad, q.grad = torch.zeros(0, 6, 6), torch.randn(6, 6)
    optimizer.step()
    assert p.shape == (0, 6, 6)
    assert not torch.equal(q, before)
