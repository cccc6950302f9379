"""Batches, blocks and products are their parts."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from tests._asserts import assert_same_to_rounding
from tests._matrices import unitary

from ._cases import BATCH, CASES, METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [c for c in CASES if c.dtype == torch.complex128], ids=str)
def test_a_batch_is_its_members_and_broadcasts(case, method):
    x, y = case.point(*BATCH), case.point(*BATCH)
    u, v = case.any(*BATCH), case.any(*BATCH)
    call, m = METHODS[method], case.manifold
    together = call(m, x, y, u, v)
    alone = [call(m, *(t[i, j] for t in (x, y, u, v))) for i in range(2) for j in range(3)]
    expected = torch.stack(alone).view(*BATCH, *alone[0].shape)
    assert_same_to_rounding(together, expected, ulps=500)
    if method not in ("projx", "inner"):
        few = call(m, x[:, :1], y[:, :1], u, v)
        full = call(m, *(t[:, :1].expand(*BATCH, *case.shape) for t in (x, y)), u, v)
        assert_same_to_rounding(few, full, ulps=50)


@pytest.mark.parametrize("case", [c for c in CASES if c.blocks > 1], ids=str)
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"inner", "component_inner"}))
def test_blocks_are_matrices_of_their_own(case, method):
    x, y, u, v = case.point(), case.point(), case.any(), case.any()
    one = LowRankStiefel(case.k)
    together = METHODS[method](case.manifold, x, y, u, v).chunk(case.blocks)
    blocks = zip(*(t.chunk(case.blocks) for t in (x, y, u, v)), strict=True)
    for block, result in zip(blocks, together, strict=True):
        assert_same_to_rounding(result, METHODS[method](one, *block), ulps=500)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_square_blocks_have_distances(dtype):
    x, y = (unitary(3, 4, 5, 5, dtype=dtype) for _ in range(2))
    stacked, one = LowRankUnitary(2, blocks=4), LowRankUnitary(2)
    flat_x, flat_y = x.flatten(1, 2), y.flatten(1, 2)
    expected = one.dist(x, y).square().sum(-1).sqrt()
    assert_same_to_rounding(stacked.dist(flat_x, flat_y), expected)
    assert stacked.dist(flat_x, flat_y, keepdim=True).shape == (3, 1, 1)
    assert_same_to_rounding(stacked.logmap(flat_x, flat_y), one.logmap(x, y).flatten(1, 2))
    assert stacked.inner(flat_x, flat_y).shape == (3,)


def test_a_product_with_others_is_its_parts():
    parts = (LowRankStiefel(2), LowRankUnitary(1), LowRankStiefel(1, blocks=2), geoopt.Sphere())
    shapes = ((9, 4), (4, 4), (6, 2), (3,))
    manifold = geoopt.ProductManifold(*zip(parts, shapes, strict=True))
    x = manifold.random(5, sum(torch.Size(shape).numel() for shape in shapes), dtype=torch.float64)
    x = x.detach()
    assert manifold.check_point_on_manifold(x)
    g = torch.randn_like(x)
    u = manifold.egrad2rgrad(x, g)
    assert manifold.check_vector_on_tangent(x, u)
    y = manifold.retr(x, u)
    assert manifold.check_point_on_manifold(y)
    pieces = zip(parts, *(manifold.unpack_tensor(t) for t in (x, g, y)), strict=True)
    for part, one, grad, arrived in pieces:
        assert_same_to_rounding(part.retr(one, part.egrad2rgrad(one, grad)), arrived, ulps=100)
