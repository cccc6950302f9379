"""Matrices that are stepped together take the steps that they would take alone."""

import pytest
import torch

from ._helpers import (
    OPTIMIZERS,
    SKETCHES,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    rotation,
    unitary_parameter,
)
from ._textbook import REAL_AND_COMPLEX

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("dtype", REAL_AND_COMPLEX)
@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_a_batch_equals_the_loop_over_its_matrices(batch, dtype, sketch, k, kind):
    together = unitary_parameter(*batch, 6, 6, dtype=dtype, k=k, sketch=sketch)
    apart = [on_manifold(x, k=k, sketch=sketch) for x in together.detach().view(-1, 6, 6)]
    grads = gradients(together, 4)
    feed(kind([together], lr=0.02), together, grads)
    for index, p in enumerate(apart):
        feed(kind([p], lr=0.02), p, [grad.view(-1, 6, 6)[index] for grad in grads])
    assert_within(together, torch.stack([p.detach() for p in apart]).view_as(together), 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("k", [1, None])
def test_parameters_of_one_shape_in_a_group_equal_separate_optimizers(k, batch, kind):
    together = [unitary_parameter(*batch, 6, 6, dtype=torch.float64, k=k) for _ in range(3)]
    apart = [on_manifold(p.detach(), k=k) for p in together]
    optimizer = kind(together, lr=0.02)
    others = [kind([p], lr=0.02) for p in apart]
    for _ in range(4):
        for p, q, other in zip(together, apart, others, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
            other.step()
        optimizer.step()
    for p, q, other in zip(together, apart, others, strict=True):
        assert_within(p, q, 1e-13)
        for name, value in optimizer.state[p].items():
            assert_within(value.double(), other.state[q][name], 1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equal_shapes_on_different_manifolds_keep_their_own_rules(kind):
    start = rotation(6, 6, dtype=torch.float64)
    choices = [{"k": 1}, {"k": 2}, {"k": None}, {"k": 1, "retraction": "cayley"}]
    together = [on_manifold(start, **choice) for choice in choices]
    grads = gradients(together[0], 3)
    optimizer = kind(together, lr=0.1)
    for grad in grads:
        for p in together:
            p.grad = grad.clone()
        optimizer.step()
    for p, choice in zip(together, choices, strict=True):
        alone = on_manifold(start, **choice)
        feed(kind([alone], lr=0.1), alone, grads)
        assert_same_bits(p, alone)
    assert all(not torch.equal(p, q) for i, p in enumerate(together) for q in together[i + 1 :])
