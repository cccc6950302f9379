"""Steps end on the manifold, where dense references do."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import RETRACTIONS, eps, proju_reference, step_reference, tangent_at, unitary

from ._cases import BATCH, N


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_retr_of_a_step_of_rank_2k_is_that_of_the_textbook(case, norm):
    x = case.point(*BATCH)
    u = case.step(x, norm)
    expected = step_reference(case.retraction, x, case.unscaled(u))
    assert_within(case.manifold.retr(x, u), expected, 100 * max(1.0, norm) * eps(case.dtype))


@pytest.mark.parametrize("norm", [1e-6, 0.05, 1.0, 10.0])
def test_expmap_is_the_exponential_whatever_the_rank(case, norm):
    x = case.point(*BATCH)
    u = tangent_at(x, norm=norm)
    expected = step_reference("exponential", x, case.unscaled(u))
    tolerance = 20 * max(1.0, norm) * eps(case.dtype)
    assert_within(case.manifold.expmap(x, u), expected, tolerance)
    # torch.linalg.matrix_exp of a single matrix takes another way than of a batch.
    assert_within(case.manifold.expmap(x[0, 0], u[0, 0]), expected[0, 0], tolerance)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 100.0])
def test_every_step_ends_on_the_manifold(case, norm):
    x = case.point(*BATCH)
    u = tangent_at(x, norm=norm)
    y = case.manifold.retr(x, u)
    # A core may miss by 1e-13, see test_retractions.
    assert_within(y.mH @ y, torch.eye(N), 20 * eps(case.dtype) + 1e-13)
    # A dense exponential is squared more often the longer the step.
    assert_unitary(case.manifold.expmap(x, u), ulps=20 * max(1.0, norm))


def test_a_zero_step_moves_no_bit(case):
    x = case.point(*BATCH)
    zero = torch.zeros_like(x)
    assert_bit_equal(case.manifold.retr(x, zero), x)
    assert_bit_equal(case.manifold.expmap(x, zero), x)
    v = tangent_at(x)
    for moved, still in zip(case.manifold.retr_transp(x, zero, v), (x, v), strict=True):
        assert_bit_equal(moved, still)


def test_a_normal_part_of_the_step_is_projected_away(case):
    # geoopt seeds its momentum with a Euclidean gradient.
    x = case.point(*BATCH)
    u = case.step(x)
    normal = x @ torch.randn(N, N, dtype=case.dtype)
    normal = normal - proju_reference(x, normal)
    assert_within(
        case.manifold.retr(x, u + normal), case.manifold.retr(x, u), 300 * eps(case.dtype)
    )


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [2, None])
def test_each_matrix_of_a_batch_may_take_a_step_of_its_own_length(retraction, k):
    manifold = LowRankUnitary(k, retraction=retraction)
    x, d = unitary(3, 6, 6), torch.randn(3, 6, 6, dtype=torch.float64)
    sketched = manifold.sketch_direction(x, d, torch.zeros(3).long())
    lengths = torch.tensor([0.0, -0.1, 3.0], dtype=torch.float64)
    together = manifold.rotation(sketched, lengths[:, None, None], x.dtype)(x)
    for i, length in enumerate(lengths.tolist()):
        alone = manifold.rotation(sketched, length, x.dtype)(x)[i]
        assert_bit_equal(together[i], alone)
