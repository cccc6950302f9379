"""Parameters, gradients and state may lie in memory in any way."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    eps,
    feed,
    gradients,
    on_manifold,
    rotation,
    unitary_parameter,
)
from ._textbook import SECOND_MOMENTS

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("n", [16, 300])
def test_a_transposed_view_is_stepped_as_its_contiguous_copy(n, dtype, kind):
    start = rotation(n, n, dtype=dtype)
    view = geoopt.ManifoldParameter(start.mT.contiguous().mT, manifold=LowRankUnitary(k=2))
    copy = on_manifold(start, k=2)
    assert not view.is_contiguous()
    grads = gradients(copy, 3, scale=1 / n)
    address, strides = view.data_ptr(), view.stride()
    feed(kind([view], lr=0.01), view, grads)
    feed(kind([copy], lr=0.01), copy, grads)
    assert (view.data_ptr(), view.stride()) == (address, strides)
    assert torch.linalg.matrix_norm(copy.detach() - start) > 1e-3
    assert_within(view, copy, 1000 * eps(dtype))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("permutation", [(1, 0, 3, 2), (1, 0, 2, 3), (0, 1, 3, 2)])
def test_a_permuted_batch_is_stepped_as_its_contiguous_copy(permutation, kind):
    start = rotation(2, 3, 5, 5, dtype=torch.float64).permute(permutation).contiguous()
    inverse = [permutation.index(axis) for axis in range(4)]
    view = start.permute(inverse).contiguous().permute(permutation)
    view = geoopt.ManifoldParameter(view, manifold=LowRankUnitary(k=2))
    copy = on_manifold(start, k=2)
    assert not view.is_contiguous()
    grads = gradients(copy, 3)
    feed(kind([view], lr=0.01), view, grads)
    feed(kind([copy], lr=0.01), copy, grads)
    assert_within(view, copy, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_view_into_a_larger_tensor_leaves_its_neighbours_alone(kind):
    storage = torch.full((3, 6, 6), 7.0)
    storage[1] = rotation(6, 6)
    p = geoopt.ManifoldParameter(storage[1], manifold=LowRankUnitary())
    before = storage[1].clone()
    feed(kind([p], lr=0.1), p, gradients(p, 2))
    assert_same_bits(storage[1], p)
    assert not torch.equal(storage[1], before)
    assert torch.equal(storage[[0, 2]], torch.full((2, 6, 6), 7.0))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_layout_of_a_gradient_does_not_matter(kind):
    dense = unitary_parameter(6, 6, dtype=torch.float64)
    p, q = (on_manifold(dense.detach()) for _ in range(2))
    grads = gradients(dense, 3)
    feed(kind([dense], lr=0.1), dense, grads)
    optimizers = kind([p], lr=0.1), kind([q], lr=0.1)
    for grad in grads:
        p.grad = grad.mT.contiguous().mT
        q.grad = torch.stack((grad, grad), -1)[..., 0]
        for optimizer in optimizers:
            optimizer.step()
    assert_within(p, dense, 1e-13)
    assert_within(q, dense, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_expanded_gradient_is_stepped_as_its_dense_copy(kind):
    p = unitary_parameter(6, 6, dtype=torch.float64)
    q = on_manifold(p.detach())
    row = torch.randn(6).double()
    optimizers = kind([p], lr=0.1), kind([q], lr=0.1)
    p.grad, q.grad = row.expand(6, 6), row.expand(6, 6).contiguous()
    for optimizer in optimizers:
        optimizer.step()
    assert_within(p, q, 1e-13)


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_a_gradient_that_is_the_parameter_itself_is_that_before_the_step(second_moment):
    start = rotation(8, 8, dtype=torch.float64)
    p, q = on_manifold(start), on_manifold(start)
    optimizers = [ProjUNNRiemannianAdam([x], lr=0.1, second_moment=second_moment) for x in (p, q)]
    for _ in range(2):
        p.grad, q.grad = p.detach(), q.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_within(p, q, 1e-14)
    for name, value in optimizers[0].state[p].items():
        assert_within(value.double(), optimizers[1].state[q][name].double(), 1e-14)


def test_a_loaded_state_may_be_stored_by_columns():
    start = rotation(8, 8, dtype=torch.float64)
    p, q = on_manifold(start), on_manifold(start)
    grads = gradients(p, 2)
    optimizers = [
        ProjUNNRiemannianAdam([x], lr=0.1, amsgrad=True, second_moment="elementwise")
        for x in (p, q)
    ]
    for optimizer, x in zip(optimizers, (p, q), strict=True):
        feed(optimizer, x, grads[:1])
    state = optimizers[1].state[q]
    state["max_exp_avg_sq"] = state["max_exp_avg_sq"].mT.contiguous().mT
    for optimizer, x in zip(optimizers, (p, q), strict=True):
        feed(optimizer, x, grads[1:])
    assert_within(p, q, 1e-12)
