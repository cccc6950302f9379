"""Lengths, projections and gradients are those of the canonical metric."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests._matrices import WIDE_DTYPES, eps, unitary

from ._cases import BATCH, canonical, check


def test_lengths_are_those_of_the_canonical_metric(case):
    x, u, v = case.point(*BATCH), case.any(*BATCH), case.any(*BATCH)
    m = case.manifold
    tolerance = 100 * eps(case.dtype)
    assert_within(m.inner(x, u, v), canonical(case, x, u, v), tolerance)
    assert_within(m.inner(x, u), canonical(case, x, u, u), tolerance)
    assert m.inner(x, u, keepdim=True).shape == (*BATCH, 1, 1)
    assert_within(m.norm(x, u) ** 2, canonical(case, x, u, u), tolerance)


def test_proju_is_the_orthogonal_projection(case):
    x, u = case.point(*BATCH), case.any(*BATCH)
    m = case.manifold
    projected = m.proju(x, u)
    check(case, x, projected)
    assert_same_to_rounding(m.proju(x, projected), projected)
    v = case.tangent(x)
    assert_within(canonical(case, x, u - projected, v), 0, 100 * eps(case.dtype))
    assert_same_to_rounding(m.proju(x, v), v)


def test_the_full_gradient_is_that_of_the_metric(case):
    x, g = case.point(*BATCH), case.any(*BATCH)
    m = LowRankStiefel(None, blocks=case.blocks)
    v = case.tangent(x)
    rgrad = m.egrad2rgrad(x, g)
    check(case, x, rgrad)
    assert_within(m.inner(x, rgrad, v), (g.conj() * v).real.sum((-2, -1)), 200 * eps(case.dtype))


def test_a_sketched_gradient_is_tangent_of_rank_2k_and_descends(case):
    x, g = case.point(*BATCH), case.any(*BATCH)
    rgrad = case.manifold.egrad2rgrad(x, g)
    check(case, x, rgrad)
    assert rgrad.is_contiguous()
    values = torch.linalg.svdvals(case.tall(rgrad))
    if case.k is not None and 2 * case.k < values.shape[-1]:
        assert_within(values[..., 2 * case.k :], 0, 100 * eps(case.dtype))
    if case.sketch == "tangent":
        slope = (g.conj() * rgrad).real.sum((-2, -1))
        assert (slope > 1e-3).all()


@pytest.mark.parametrize("shape", [(9, 4), (6, 6)])
def test_at_full_rank_length_and_gradient_are_geoopts(shape):
    ours, theirs = LowRankStiefel(None), geoopt.CanonicalStiefel()
    x = ours.random(2, *shape, dtype=torch.float64).detach()
    u, v = torch.randn(2, 2, *shape, dtype=torch.float64)
    assert_same_to_rounding(ours.egrad2rgrad(x, u), theirs.egrad2rgrad(x, u))
    assert_same_to_rounding(ours.inner(x, u, v), theirs.inner(x, u, v))
    assert_same_to_rounding(ours.inner(x, u, keepdim=True), theirs.inner(x, u, keepdim=True))


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_on_square_points_the_gradient_is_twice_that_of_low_rank_unitary(dtype):
    x, u = unitary(3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype)
    for k in (2, None):
        one, other = LowRankUnitary(k), LowRankStiefel(k)
        assert_same_to_rounding(other.egrad2rgrad(x, u), 2 * one.egrad2rgrad(x, u))
        v = one.egrad2rgrad(x, u)
        assert_bit_equal(other.retr(x, v), one.retr(x, v))
