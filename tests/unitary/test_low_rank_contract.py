"""What the methods of a manifold promise, and how they say that a vector does not fit."""

import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary


@pytest.mark.parametrize("name", ["k", "retraction", "sketch", "sweep", "blocks"])
def test_every_option_tells_manifolds_apart(name):
    other = {"k": 3, "retraction": "polar", "sketch": "lsi", "sweep": 2, "blocks": 2}
    assert LowRankUnitary(2) == LowRankUnitary(2)
    assert LowRankUnitary(**{"k": 2, name: other[name]}) != LowRankUnitary(2)
    assert LowRankUnitary(2) != LowRankStiefel(2)


def test_only_without_truncation_is_a_step_reversible():
    assert LowRankUnitary(None).reversible
    assert not LowRankUnitary(2).reversible
    assert not LowRankUnitary().reversible


def test_other_gradients_meet_other_test_vectors():
    """Of a fixed set the directions outside would never be found."""
    manifold = LowRankUnitary(1)
    x, d = manifold.random(8, 8), torch.randn(8, 8)
    first = manifold.egrad2rgrad(x, d)
    second = manifold.egrad2rgrad(x, d * (1 + 1e-4))
    assert (first - second).norm() > 0.01 * first.norm()


def test_a_result_of_rank_k_may_be_changed_in_place():
    manifold = LowRankUnitary(1)
    x = manifold.random(4, 4).as_subclass(torch.Tensor).requires_grad_()
    y = manifold.retr(x, torch.zeros(4, 4))
    assert torch.equal(y.mul_(2).detach(), 2 * x.detach())


@pytest.mark.parametrize("name", ["x", "u"])
def test_a_derivative_by_an_argument_that_has_a_name_is_refused(name):
    manifold = LowRankUnitary(1)
    x, u = manifold.random(4, 4).as_subclass(torch.Tensor), torch.randn(4, 4)
    (x if name == "x" else u).requires_grad_()
    y = manifold.retr(x, u=u)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        y.sum().backward()


@pytest.mark.parametrize("manifold", [LowRankUnitary(), LowRankStiefel()], ids=str)
def test_an_inner_product_of_another_dtype_is_refused(manifold):
    x, u = torch.eye(4), torch.zeros(4, 4)
    with pytest.raises(TypeError, match=r"`v` must have the dtype of `x`, torch\.float32"):
        manifold.inner(x, u, u.double())


def test_a_vector_has_no_rank():
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*, n, n\), got \(3,\)"):
        LowRankUnitary().rank(torch.zeros(3))


def test_checks_of_a_vector_give_their_reason_for_dtype_and_shape():
    manifold, x = LowRankUnitary(), torch.eye(4)
    ok, reason = manifold.check_vector_on_tangent(x, torch.zeros(4, 4).double(), explain=True)
    assert not ok
    assert "`u` must have the dtype of `x`" in reason
    ok, reason = manifold.check_vector_on_tangent(x, torch.zeros(7, 7), explain=True)
    assert not ok
    assert "`u` must have shape (*, 4, 4) like `x`, got (7, 7)" in reason
