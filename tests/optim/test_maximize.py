"""With maximize the loss goes up."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    SKETCHES,
    assert_within,
    eps,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {}),
        (ProjUNNRiemannianSGD, {"momentum": 0.9}),
        (ProjUNNRiemannianAdam, {}),
    ],
)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_maximize_is_descending_on_the_negated_loss(k, sketch, kind, options):
    down = unitary_parameter(6, 6, dtype=torch.float64, k=k, sketch=sketch)
    up = on_manifold(down.detach(), k=k, sketch=sketch)
    grads = gradients(down, 5)
    feed(kind([down], lr=0.01, **options), down, [-grad for grad in grads])
    feed(kind([up], lr=0.01, maximize=True, **options), up, grads)
    assert_within(up, down, 20 * eps(torch.float64))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximize_climbs(dtype, kind):
    p = unitary_parameter(6, 6, dtype=dtype)
    weights = torch.randn(6, 6, dtype=dtype)
    optimizer = kind([p], lr=0.05, maximize=True)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = (weights.conj() * p).real.sum()
        values.append(value.item())
        value.backward()
        optimizer.step()
    assert values[-1] > values[0] + 0.5
