"""Second moments that differ between groups, change, or come from elsewhere."""

import copy

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam

from ._helpers import assert_same_bits, feed, gradients, on_manifold, unitary_parameter
from ._textbook import SECOND_MOMENTS

pytestmark = pytest.mark.usefixtures("each_way")


def test_second_moments_may_differ_between_groups():
    first, second = (unitary_parameter(6, 6, dtype=torch.float64) for _ in range(2))
    apart = [on_manifold(p.detach()) for p in (first, second)]
    optimizer = ProjUNNRiemannianAdam(
        [{"params": [first]}, {"params": [second], "second_moment": "scalar", "lr": 0.1}], lr=0.01
    )
    others = [
        ProjUNNRiemannianAdam([apart[0]], lr=0.01),
        ProjUNNRiemannianAdam([apart[1]], lr=0.1, second_moment="scalar"),
    ]
    for _ in range(4):
        for p, q, other in zip((first, second), apart, others, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
            other.step()
        optimizer.step()
    assert_same_bits(first, apart[0])
    assert_same_bits(second, apart[1])


@pytest.mark.parametrize("first", SECOND_MOMENTS)
def test_a_group_may_change_its_second_moment(first):
    (second,) = set(SECOND_MOMENTS) - {first}
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianAdam([p], second_moment=first)
    feed(optimizer, p, gradients(p, 2))
    q = copy.deepcopy(p)
    optimizer.param_groups[0]["second_moment"] = second
    grads = gradients(p, 3)
    feed(optimizer, p, grads)
    assert optimizer.skipped_steps == 0
    # As a new one: a moment that begins at zero after many steps would make the next ones too long.
    feed(ProjUNNRiemannianAdam([q], second_moment=second), q, grads)
    assert_same_bits(p, q)


@pytest.mark.parametrize("first", SECOND_MOMENTS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_group_that_changes_back_begins_anew_once_more(first, amsgrad):
    (second,) = set(SECOND_MOMENTS) - {first}
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianAdam([p], second_moment=first, amsgrad=amsgrad)
    optimizer.state[p]["of someone else"] = 1
    feed(optimizer, p, [1e3 * grad for grad in gradients(p, 3)])
    (group,) = optimizer.param_groups
    group["second_moment"] = second
    feed(optimizer, p, gradients(p, 1))
    group["second_moment"] = first
    q, grads = copy.deepcopy(p), gradients(p, 3)
    feed(optimizer, p, grads)
    fresh = ProjUNNRiemannianAdam([q], second_moment=first, amsgrad=amsgrad)
    feed(fresh, q, grads)
    assert_same_bits(p, q)
    assert set(optimizer.state[p]) == {*fresh.state[q], "of someone else"}


def test_moments_of_torchs_adam_that_were_not_taken_over_are_never_used():
    p = unitary_parameter(6, 6)
    plain = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.Adam([plain])
    feed(theirs, plain, [1e3 * grad for grad in gradients(plain, 3)])
    optimizer = ProjUNNRiemannianAdam([p])
    optimizer.load_state_dict(theirs.state_dict())
    feed(optimizer, p, gradients(p, 1))
    optimizer.param_groups[0]["second_moment"] = "elementwise"
    q, grads = copy.deepcopy(p), gradients(p, 3)
    feed(optimizer, p, grads)
    feed(ProjUNNRiemannianAdam([q], second_moment="elementwise"), q, grads)
    assert_same_bits(p, q)


def test_a_checkpoint_of_elementwise_moments_goes_on_with_them():
    """They were the default of version 0.1."""
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianAdam([p], lr=0.01, second_moment="elementwise")
    feed(optimizer, p, gradients(p, 3))
    q, grads = copy.deepcopy(p), gradients(p, 3)
    resumed = ProjUNNRiemannianAdam([q])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    feed(optimizer, p, grads)
    feed(resumed, q, grads)
    assert_same_bits(p, q)
