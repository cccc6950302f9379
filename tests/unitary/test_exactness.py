"""Which steps of low rank are exact, and by what order retractions differ from geodesics."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_within
from tests._matrices import (
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    exponential_reference,
    skewh,
    tangent_at,
    unitary,
)

from ._cases import N


@pytest.mark.parametrize("norm", [1e-8, 0.1, 3.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(
    ("n", "k"), [(2, 1), (3, 1), (8, 1), (8, 4), (9, 4), (16, 8)], ids=lambda value: str(value)
)
def test_a_step_of_rank_2k_is_that_of_the_exact_manifold(n, k, retraction, dtype, norm):
    x = unitary(3, n, n, dtype=dtype)
    exact = LowRankUnitary(None, retraction=retraction)
    manifold = LowRankUnitary(k, retraction=retraction)
    for rank in {2, 2 * k}:
        u, v = tangent_at(x, rank=rank, norm=norm), tangent_at(x)
        expected = exact.retr_transp(x, u, v)
        for each, other in zip(manifold.retr_transp(x, u, v), expected, strict=True):
            assert_within(each, other, 1e-12)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 1), (7, 3), (8, 4), (20, 2)])
def test_a_step_along_a_sketched_gradient_is_that_of_the_exact_manifold(
    n, k, retraction, sketch, dtype
):
    x = unitary(3, n, n, dtype=dtype)
    exact = LowRankUnitary(None, retraction=retraction)
    manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
    u = manifold.egrad2rgrad(x, torch.randn(3, n, n, dtype=dtype))
    assert_within(manifold.retr(x, u), exact.retr(x, u), 1e-12)


@pytest.mark.parametrize("ratio", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_planes_of_very_different_speed_are_all_followed(dtype, retraction, ratio):
    x = unitary(3, 9, 9, dtype=dtype)
    q = unitary(9, 9, dtype=dtype)
    plane = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    omega = torch.block_diag(plane, ratio * plane, torch.zeros(5, 5)).to(dtype)
    u = q @ omega @ q.mH @ x
    expected = LowRankUnitary(None, retraction=retraction).retr(x, u)
    assert_within(LowRankUnitary(2, retraction=retraction).retr(x, u), expected, 1e-12)


@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize(("retraction", "order"), [("cayley", 3), ("polar", 3)])
def test_the_error_of_a_retraction_against_the_geodesic_falls_with_its_order(
    retraction, order, dtype, k
):
    manifold = LowRankUnitary(k, retraction=retraction)
    x = unitary(N, N, dtype=dtype)
    u = tangent_at(x, rank=None if k is None else 2)
    steps = [0.3, 0.1, 0.03, 0.01]
    errors = [
        torch.linalg.matrix_norm(manifold.retr(x, h * u) - manifold.expmap(x, h * u)).item()
        for h in steps
    ]
    logs = torch.tensor([steps, errors], dtype=torch.float64).log()
    slopes = logs[1].diff() / logs[0].diff()
    assert_within(slopes, order, 0.1)


@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_exponential_retraction_is_the_geodesic(dtype, k):
    manifold = LowRankUnitary(k)
    x = unitary(N, N, dtype=dtype)
    u = tangent_at(x, rank=None if k is None else 2)
    for h in (10.0, 1.0, 0.1, 0.01, 1e-4):
        geodesic = exponential_reference(h * skewh(u @ x.mH)) @ x
        assert_within(manifold.retr(x, h * u), geodesic, 1e-13)
