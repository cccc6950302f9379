"""Projections of any matrices and vectors, for every kind of manifold."""

import torch

from tests._asserts import (
    assert_bit_equal,
    assert_same_to_rounding,
    assert_tangent,
    assert_unitary,
    assert_within,
)
from tests._matrices import eps, polar_reference, proju_reference, tangent_at, unitary, wide

from ._cases import BATCH, N


def test_projx_is_the_nearest_unitary_matrix(case):
    # Singular values 1 to 7 keep the polar factor well conditioned.
    d = wide(case.dtype)
    values = torch.arange(1.0, N + 1).to(d).diag_embed()
    x = (unitary(*BATCH, N, N, dtype=d) @ values @ unitary(N, N, dtype=d)).to(case.dtype)
    projected = case.manifold.projx(x)
    assert_unitary(projected, ulps=8)
    assert_same_to_rounding(projected, polar_reference(x.to(d)).to(case.dtype))
    assert case.manifold.check_point_on_manifold(projected)


def test_projx_of_a_projection_is_bit_equal(case):
    projected = case.manifold.projx(torch.randn(*BATCH, N, N, dtype=case.dtype))
    assert_bit_equal(case.manifold.projx(projected), projected)


def test_proju_is_the_part_with_a_skew_generator(case):
    x, u = case.point(*BATCH), torch.randn(*BATCH, N, N, dtype=case.dtype)
    projected = case.manifold.proju(x, u)
    assert_tangent(x, projected)
    assert case.manifold.check_vector_on_tangent(x, projected)
    assert_same_to_rounding(projected, proju_reference(x, u))


def test_proju_is_idempotent_and_orthogonal(case):
    x, u = case.point(*BATCH), torch.randn(*BATCH, N, N, dtype=case.dtype)
    projected = case.manifold.proju(x, u)
    assert_same_to_rounding(case.manifold.proju(x, projected), projected)
    rest = case.manifold.inner(x, u - projected, tangent_at(x))
    assert_within(rest, 0, 100 * eps(case.dtype))


def test_egrad2rgrad_is_tangent_and_of_rank_2k(case):
    x, u = case.point(*BATCH), torch.randn(*BATCH, N, N, dtype=case.dtype)
    rgrad = case.manifold.egrad2rgrad(x, u)
    assert_tangent(x, rgrad)
    if case.k is None:
        assert_bit_equal(rgrad, case.manifold.proju(x, u))
    else:
        values = torch.linalg.svdvals(rgrad)
        assert_within(values[..., 2 * case.k :], 0, 20 * eps(case.dtype))
        assert (values[..., 0] > 1e-3).all()
