"""Points: projected and drawn."""

import pytest
import torch

from geoopt_projunn import LowRankStiefel
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_unitary, assert_within
from tests._matrices import WIDE_DTYPES, eps, wide

from ._cases import BATCH


def test_projx_is_the_nearest_point_and_leaves_points_alone(case):
    a = case.any(*BATCH) + 2 * case.point(*BATCH)
    projected = case.manifold.projx(a)
    u, _, vh = torch.linalg.svd(case.tall(a).to(wide(case.dtype)), full_matrices=False)
    assert_within(projected, case.back(u @ vh, a), 100 * eps(case.dtype))
    assert case.manifold.check_point_on_manifold(projected)
    assert_bit_equal(case.manifold.projx(projected), projected)
    assert not case.manifold.check_point_on_manifold(a)


@pytest.mark.parametrize("shape", [(6, 3), (2, 5)])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_projx_has_the_derivatives_of_the_polar_factor(shape, dtype):
    m = LowRankStiefel(1)
    a = (m.random(*shape, dtype=dtype) + 0.3 * torch.randn(shape, dtype=dtype)).detach()
    a.requires_grad_()
    assert torch.autograd.gradcheck(m.projx, a)
    assert torch.autograd.gradgradcheck(m.projx, a)
    x, g = m.projx(a).detach().requires_grad_(), torch.randn(shape, dtype=dtype)
    (grad,) = torch.autograd.grad(m.projx(x), x, g)
    assert_same_to_rounding(grad, m.proju(x.detach(), g))


def test_points_are_drawn_and_named(case):
    size = (*BATCH, *case.shape)
    for point in (
        case.manifold.random(*size, dtype=case.dtype),
        case.manifold.origin(*size, dtype=case.dtype),
    ):
        assert point.shape == size
        assert_unitary(case.tall(point.detach()))
        assert point.is_contiguous()
    error = case.manifold.orthogonality_error(2 * point)
    count = min(case.shape[0] // case.blocks, case.shape[1])
    assert_within(error, 3 * count**0.5, 20 * eps(case.dtype))
    assert_within(case.manifold.estimate_orthogonality_error(point), 0, 20 * eps(case.dtype))
