"""A step depends on its inputs alone."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    SKETCHES,
    assert_same_bits,
    assert_same_state,
    bystander,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)

pytestmark = pytest.mark.usefixtures("each_way")


def test_the_same_run_twice_gives_the_same_bits():
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        p = unitary_parameter(3, 8, 8, k=2)
        optimizer = ProjUNNRiemannianSGD([p, bystander()], lr=0.1, momentum=0.9)
        feed(optimizer, p, gradients(p, 5))
        runs.append((p, optimizer.state[p]))
    assert_same_bits(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {"momentum": 0.9, "dampening": 0.3}),
        (ProjUNNRiemannianAdam, {"amsgrad": True, "second_moment": "elementwise"}),
        (ProjUNNRiemannianAdam, {"second_moment": "scalar"}),
    ],
)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_the_default_dtype_and_device_have_no_say(sketch, kind, options, dtype):
    p = unitary_parameter(8, 8, dtype=dtype, k=2, sketch=sketch)
    q = on_manifold(p.detach(), k=2, sketch=sketch)
    grads = gradients(p, 4)
    feed(kind([p], lr=0.1, **options), p, grads)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            feed(kind([q], lr=0.1, **options), q, grads)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(p, q)


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_draws_no_random_numbers(kind, sketch):
    p = unitary_parameter(8, 8, sketch=sketch)
    grads = gradients(p, 3)
    before = torch.get_rng_state()
    feed(kind([p], lr=0.1), p, grads)
    assert torch.equal(torch.get_rng_state(), before)
