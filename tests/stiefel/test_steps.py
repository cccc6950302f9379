"""Steps, and geodesics of the canonical metric, by dense references."""

import pytest
import torch

from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import WIDE_DTYPES, eps, exponential_reference, retraction_reference

from ._cases import BATCH, Case


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_a_step_of_rank_2k_is_that_of_the_textbook(case, norm):
    x = case.point(*BATCH)
    u = case.tangent(x, case.rank(), norm)
    scaled = u / (case.scale or 1.0)
    tolerance = 200 * max(1.0, norm) * eps(case.dtype)
    expected = case.moved(x, scaled, lambda core: retraction_reference(case.retraction, core))
    assert_within(case.manifold.retr(x, u), expected, tolerance)
    expected = case.moved(x, scaled, exponential_reference)
    assert_within(case.manifold.expmap(x, u), expected, tolerance)


def test_a_step_along_a_sketched_gradient_is_followed_exactly(case):
    x = case.point(*BATCH)
    u = case.manifold.egrad2rgrad(x, case.any(*BATCH))
    expected = case.moved(
        x, u / (case.scale or 1.0), lambda core: retraction_reference(case.retraction, core)
    )
    assert_within(case.manifold.retr(x, u), expected, 500 * eps(case.dtype))


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_geodesics_are_those_of_edelman_arias_and_smith(dtype):
    # Their theorem 2.1: [x q] exp([[a, -rᴴ], [r, 0]]) [[1], [0]], q r = (1 - xxᴴ) u, a = xᴴu.
    case = Case((9, 4), 1, None, dtype)
    x = case.point()
    u = case.tangent(x, norm=2.0)
    a = x.mH @ u
    q, r = torch.linalg.qr(u - x @ a)
    block = torch.cat((torch.cat((a, -r.mH), -1), torch.cat((r, torch.zeros_like(a)), -1)))
    expected = torch.cat((x, q), -1) @ exponential_reference(block)[:, :4]
    assert_within(case.manifold.expmap(x, u), expected, 1e-13)
    assert_within(case.manifold.retr(x, u), expected, 1e-13)


@pytest.mark.parametrize("retraction", ["polar", "cayley"])
@pytest.mark.parametrize("k", [1, None])
def test_a_retraction_agrees_with_the_geodesic_to_second_order(retraction, k):
    case = Case((9, 4), 1, k, torch.float64, retraction)
    x = case.point()
    u = case.tangent(x, case.rank())
    steps = [0.3, 0.1, 0.03, 0.01]
    m = case.manifold
    errors = [torch.linalg.matrix_norm(m.retr(x, h * u) - m.expmap(x, h * u)) for h in steps]
    logs = torch.tensor([steps, errors], dtype=torch.float64).log()
    assert_within(logs[1].diff() / logs[0].diff(), 3, 0.1)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 100.0])
def test_every_step_ends_on_the_manifold(case, norm):
    x = case.point(*BATCH)
    y = case.manifold.retr(x, case.tangent(x, norm=norm))
    assert_within(
        case.tall(y).mH @ case.tall(y),
        torch.eye(min(case.tall(y).shape[-2:])),
        1e-13 + 20 * eps(case.dtype),
    )


def test_a_zero_step_moves_no_bit_and_a_normal_part_is_projected_away(case):
    x, m = case.point(*BATCH), case.manifold
    assert_bit_equal(m.retr(x, torch.zeros_like(x)), x)
    u, a = case.tangent(x, case.rank()), case.any(*BATCH)
    normal = a - m.proju(x, a)
    assert_within(m.retr(x, u + normal), m.retr(x, u), 500 * eps(case.dtype))


def test_there_are_no_distances(case):
    x, y = case.point(), case.point()
    for name in ("dist", "dist2", "logmap"):
        with pytest.raises(NotImplementedError, match=r"is not available: the shortest geodesic"):
            getattr(case.manifold, name)(x, y)
