"""A step that fails leaves everything as it was; steps at the edge of failing are taken."""

import gc
import warnings
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import OPTIMIZERS, Snapshot, feed, gradients, on_manifold, unitary_parameter

# A state of other buffers would begin, and then the angle is a warning.
CHANGES = {
    ProjUNNRiemannianSGD: ({"momentum": 0.9}, {"momentum_space": "tangent"}),
    ProjUNNRiemannianAdam: ({}, {"second_moment": "elementwise"}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_warning_that_is_an_error_changes_no_state(kind):
    p = unitary_parameter(6, 6, k=2)
    options, change = CHANGES[kind]
    optimizer = kind([p], lr=0.1, **options)
    feed(optimizer, p, gradients(p, 2))
    optimizer.param_groups[0].update(change, normalize="angle", lr=3.0)
    (p.grad,) = gradients(p, 1)
    before = Snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="may stop at half a turn"):
            optimizer.step()
    before.assert_unchanged()


def bad_plain(kind):
    """A plain parameter on which torch fails when its turn comes."""
    bad = torch.nn.Parameter(torch.zeros(3))
    optimizer = kind([bad], lr=0.1)
    bad.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[bad]
    bad.data, bad.grad = torch.zeros(1).expand(3), torch.ones(3)
    return bad, state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_error_of_torch_at_a_first_step_leaves_it_the_first(kind):
    p = unitary_parameter(6, 6, k=2)
    (p.grad,) = gradients(p, 1)
    bad, state = bad_plain(kind)
    optimizer = kind([p, bad], lr=0.1)
    optimizer.state[bad] = state
    with pytest.raises(RuntimeError, match="memory location"):
        optimizer.step()
    assert p not in optimizer.state
    with torch.no_grad():
        p.mul_(3)
    bad.grad = None
    with pytest.raises(ValueError, match="before its first step"):
        optimizer.step()


@pytest.mark.parametrize("k", [2, None])
def test_a_skipped_step_is_an_error_once_where_warnings_are(k):
    params = [unitary_parameter(n, n, k=k) for n in (6, 8)]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    bad, good = params
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad.grad, good.grad = torch.full((6, 6), torch.nan), torch.randn(8, 8)
        with pytest.raises(UserWarning, match="was skipped"):
            optimizer.step()
        for _ in range(3):
            (bad.grad,), (good.grad,) = gradients(bad, 1), gradients(good, 1)
            optimizer.step()
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        (torch.optim.SGD, ProjUNNRiemannianSGD, {"momentum": 0.9}),
        (torch.optim.Adam, ProjUNNRiemannianAdam, {}),
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_the_state_of_an_ascent_by_torch_goes_on_upwards(theirs, ours, options, maximize):
    p = unitary_parameter(6, 6, k=None, dtype=torch.float64)
    plain = torch.nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    (grad,) = gradients(p, 1)
    old = theirs([p, plain], lr=0.0, maximize=maximize, **options)
    p.grad, plain.grad = grad.clone(), grad.clone()
    old.step()
    more = {"second_moment": "elementwise"} if ours is ProjUNNRiemannianAdam else {}
    new = ours([p, plain], lr=0.01, maximize=maximize, **options, **more)
    groups = new.state_dict()["param_groups"]
    new.load_state_dict({"state": old.state_dict()["state"], "param_groups": groups})
    before = [q.detach().clone() for q in (p, plain)]
    p.grad, plain.grad = torch.zeros_like(p), torch.zeros_like(plain)
    new.step()
    moved = [
        float(((q.detach() - x) * grad).sum()) for q, x in zip((p, plain), before, strict=True)
    ]
    assert all(m > 1e-3 for m in moved) if maximize else all(m < -1e-3 for m in moved)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_schedule_that_ends_below_zero_by_rounding(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.9, 0.0, total_iters=4)
    for grad in gradients(p, 7):
        feed(optimizer, p, [grad])
        schedule.step()
    assert -1e-15 < optimizer.param_groups[0]["lr"] < 0


@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16])
def test_rates_may_be_numbers_of_numpy(number, kind, k):
    p = unitary_parameter(6, 6, k=k)
    q = on_manifold(p.detach(), k=k)
    grads = gradients(p, 2)
    feed(kind([p], lr=number(0.125)), p, grads)
    feed(kind([q], lr=0.125), q, grads)
    assert torch.equal(p, q)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_that_leave_an_optimizer_are_freed(kind):
    stays = unitary_parameter(6, 6)
    leaving = [unitary_parameter(6, 6), torch.nn.Parameter(torch.randn(3, 3))]
    optimizer = kind([stays, *leaving], lr=0.01)
    for p in (stays, *leaving):
        p.grad = torch.randn(p.shape)
    optimizer.step()
    seen = [weakref.ref(p) for p in leaving]
    optimizer.param_groups[0]["params"] = [stays]
    for p in leaving:
        del optimizer.state[p]
    del p, leaving
    for _ in range(60):
        optimizer.step()
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_betas_may_be_numbers_of_numpy_and_other_numbers_are_refused():
    p, q = unitary_parameter(6, 6), torch.nn.Parameter(torch.ones(3))
    betas = np.float32(0.5), np.float32(0.75)
    optimizer = ProjUNNRiemannianAdam([p, q], lr=0.1, betas=betas)
    (p.grad,), q.grad = gradients(p, 1), torch.ones(3)
    optimizer.step()
    with pytest.raises(TypeError, match="`lr` must be a number, got Fraction"):
        ProjUNNRiemannianSGD([p], lr=Fraction(1, 2))
    ProjUNNRiemannianSGD([p], lr=-5e-18)
    with pytest.raises(ValueError, match="`lr` must lie in"):
        ProjUNNRiemannianSGD([p], lr=-1e-3)
