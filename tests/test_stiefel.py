"""LowRankStiefel: geoopt's contract, and the canonical metric, by dense references."""

from typing import NamedTuple

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_unitary, assert_within
from tests._matrices import (
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    eps,
    exponential_reference,
    polar_reference,
    retraction_reference,
    skew,
    skewh,
    unitary,
    wide,
)

BATCH = (2, 3)


class Case(NamedTuple):
    shape: tuple[int, int]
    blocks: int
    k: int | None
    dtype: torch.dtype
    retraction: str = "exponential"
    sketch: str = "tangent"
    scale: float | None = None

    @property
    def manifold(self):
        options = {"retraction": self.retraction, "sketch": self.sketch, "blocks": self.blocks}
        bare = LowRankStiefel(self.k, **options)
        return bare if self.scale is None else geoopt.Scaled(bare, self.scale)

    def tall(self, x):
        """Blocks as a batch, wide ones transposed."""
        x = x.unflatten(-2, (self.blocks, -1))
        return x.mT if x.shape[-2] < x.shape[-1] else x

    def back(self, x, like):
        x = x.mT if like.shape[-2] // self.blocks < like.shape[-1] else x
        return x.flatten(-3, -2)

    def any(self, *batch):
        return torch.randn(*batch, *self.shape, dtype=self.dtype)

    def point(self, *batch):
        a = self.any(*batch)
        u, _, vh = torch.linalg.svd(self.tall(a).to(wide(self.dtype)), full_matrices=False)
        return self.back(u @ vh, a).to(self.dtype)

    def tangent(self, x, rank=None, norm=1.0):
        """Tangent to each block, of a rank there, of a length in the canonical metric."""
        y = self.tall(x).to(wide(self.dtype))
        n = y.shape[-2]
        rotation = skew(*y.shape[:-2], n, n, rank=rank, dtype=y.dtype)
        u = self.back(rotation @ y, x)
        length = canonical(self, x, u, u).sqrt()
        return (norm * u / length[..., None, None]).to(self.dtype)

    def moved(self, x, u, rotate):
        """Rotate the blocks of x by a function of the generators of u, in float64."""
        y, v = (self.tall(t).to(wide(self.dtype)) for t in (x, u))
        return self.back(rotate(tangent_generator(y, v)) @ y, x)

    def rank(self):
        return None if self.k is None else 2 * self.k

    def __str__(self):
        kind = str(self.dtype).removeprefix("torch.")
        parts = [*self.shape, f"blocks={self.blocks}", f"k={self.k}", kind, self.retraction]
        return "-".join(map(str, [*parts, self.sketch, *(["scaled"] if self.scale else [])]))


def tangent_generator(y, v):
    """The skew-Hermitian matrix with Ωy = v that vanishes off y, for tangent v."""
    return v @ y.mH - y @ v.mH - y @ skewh(y.mH @ v) @ y.mH


def canonical(case, x, u, v):
    """The metric of Edelman, Arias and Smith, (2.39), summed over the blocks."""
    y, u, v = (case.tall(t).to(wide(case.dtype)) for t in (x, u, v))
    eye = torch.eye(y.shape[-2], dtype=y.dtype)
    return (u.conj() * ((eye - y @ y.mH / 2) @ v)).real.sum((-3, -2, -1))


SHAPES = [((9, 4), 1), ((4, 9), 1), ((6, 6), 1), ((14, 3), 2), ((6, 8), 2)]
CASES = [
    *(
        Case(shape, blocks, k, dtype)
        for shape, blocks in SHAPES
        for k in (1, None)
        for dtype in (torch.float32, torch.complex128)
    ),
    *(Case((11, 5), 1, 2, torch.float64, retraction) for retraction in RETRACTIONS),
    *(Case((5, 11), 1, 2, torch.complex64, sketch=sketch) for sketch in SKETCHES),
    Case((9, 4), 1, 2, torch.float64, scale=2.0),
    Case((5, 1), 1, 1, torch.float64),
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


def check(case, x, u, ulps=20.0):
    """u is tangent at x to some units of rounding of its largest entry."""
    product = case.tall(x).mH @ case.tall(u)
    scale = max(eps(u.dtype), u.abs().max().item())
    assert_within(product, -product.mH, ulps * eps(u.dtype) * scale)
    assert case.manifold.check_vector_on_tangent(x, u)


# -- the metric and its gradient -----------------------------------------------------------


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


# -- points --------------------------------------------------------------------------------


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
    assert_within(error, 3 * case.tall(point).shape[-1] ** 0.5, 1e-3)
    assert_within(case.manifold.estimate_orthogonality_error(point), 0, 1e-5)


# -- steps ---------------------------------------------------------------------------------


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


def test_transport_is_isometric_tangent_and_one(case):
    x, m = case.point(*BATCH), case.manifold
    u, v, w = case.tangent(x, case.rank()), case.tangent(x), case.tangent(x)
    y, v_y = m.retr_transp(x, u, v)
    assert_bit_equal(y, m.retr(x, u))
    assert_bit_equal(v_y, m.transp_follow_retr(x, u, v))
    z, v_z = m.expmap_transp(x, u, v)
    assert_bit_equal(z, m.expmap(x, u))
    assert_bit_equal(v_z, m.transp_follow_expmap(x, u, v))
    ways = [
        (y, v_y, m.transp_follow_retr(x, u, w)),
        (z, v_z, m.transp_follow_expmap(x, u, w)),
        (y, m.transp(x, y, v), m.transp(x, y, w)),
    ]
    for arrived, first, second in ways:
        check(case, arrived, first, ulps=50)
        assert first.is_contiguous()
        before = canonical(case, x, v, w)
        assert_within(canonical(case, arrived, first, second), before, 100 * eps(case.dtype))


def test_transport_carries_the_direction_of_the_step(case):
    x, m = case.point(*BATCH), case.manifold
    u = case.tangent(x, case.rank())
    y, u_y = m.retr_transp(x, u, u)
    omega = tangent_generator(*(case.tall(t).to(wide(case.dtype)) for t in (x, u)))
    expected = case.back(omega @ case.tall(y).to(omega.dtype), y)
    assert_within(u_y, expected, 200 * eps(case.dtype))


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_transport_between_two_points_is_the_nearest_rotation_that_joins_them(dtype):
    case = Case((9, 4), 1, 1, dtype)
    x, y = case.point(), case.point()
    v = case.tangent(x)
    eye = torch.eye(9, dtype=dtype)
    rotation = polar_reference(y @ x.mH + (eye - y @ y.mH) @ (eye - x @ x.mH))
    assert_within(rotation @ x, y, 1e-12)
    assert_within(case.manifold.transp(x, y, v), rotation @ v, 1e-12)
    assert_within(case.manifold.transp(x, x, v), v, 1e-13)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_transport_between_points_at_right_angles_is_isometric_and_tangent(dtype):
    """Where the product of two points is singular, one of many nearest rotations is taken."""
    case = Case((9, 3), 1, 1, dtype)
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=dtype)).Q
    x, v, w = basis[:, :3], case.tangent(basis[:, :3]), case.tangent(basis[:, :3])
    for columns in ([3, 4, 5], [0, 3, 4], [1, 2, 6]):
        y = basis[:, columns]
        first, second = case.manifold.transp(x, y, v), case.manifold.transp(x, y, w)
        assert_within(first.mH @ y + y.mH @ first, torch.zeros(3, 3, dtype=dtype), 1e-13)
        assert_within(canonical(case, y, first, second), canonical(case, x, v, w), 1e-13)


def test_there_are_no_distances(case):
    x, y = case.point(), case.point()
    for name in ("dist", "dist2", "logmap"):
        with pytest.raises(NotImplementedError, match=r"is not available: the shortest geodesic"):
            getattr(case.manifold, name)(x, y)


# -- batches, scales and products ----------------------------------------------------------

METHODS = {
    "projx": lambda m, x, y, u, v: m.projx(x + 0.1 * u),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: torch.cat(m.retr_transp(x, u, v), -1),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v, keepdim=True),
    "component_inner": lambda m, x, y, u, v: m.component_inner(x, u, v),
}


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
