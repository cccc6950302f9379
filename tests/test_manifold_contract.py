"""What geoopt expects of a manifold, for every kind of ours, bare and scaled."""

from typing import NamedTuple

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import (
    assert_bit_equal,
    assert_same_to_rounding,
    assert_tangent,
    assert_unitary,
    assert_within,
)
from tests._matrices import (
    DTYPES,
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    eps,
    exponential_reference,
    inner_reference,
    polar_reference,
    proju_reference,
    skewh,
    step_reference,
    tangent_at,
    unitary,
    wide,
)

N = 7
BATCH = (2, 3)


class Case(NamedTuple):
    retraction: str
    sketch: str
    k: int | None
    dtype: torch.dtype
    scale: float | None

    @property
    def manifold(self):
        bare = LowRankUnitary(self.k, retraction=self.retraction, sketch=self.sketch)
        return bare if self.scale is None else geoopt.Scaled(bare, self.scale)

    def rank(self):
        """The highest (even) rank of a step that is followed exactly."""
        return None if self.k is None else 2 * self.k

    def unscaled(self, u):
        return u / (self.scale or 1.0)

    def point(self, *batch):
        return unitary(*batch, N, N, dtype=self.dtype)

    def step(self, x, norm=1.0):
        return tangent_at(x, rank=self.rank(), norm=norm)

    def __str__(self):
        kind = str(self.dtype).removeprefix("torch.")
        scaled = "-scaled" if self.scale else ""
        return f"{self.retraction}-{self.sketch}-k={self.k}-{kind}{scaled}"


CASES = [
    Case(retraction, sketch, k, dtype, scale)
    for retraction in RETRACTIONS
    for sketch in SKETCHES
    for k in (1, 2, None)
    for dtype in DTYPES
    for scale in (None, 2.0)
    # The paper's sketches matter to egrad2rgrad only: one retraction will do.
    if sketch == "tangent" or (retraction == "polar" and k == 1)
    if scale is None or dtype in (torch.float32, torch.complex128)
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


# -- projections ---------------------------------------------------------------------------


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


# -- steps ---------------------------------------------------------------------------------


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
    normal = (x @ torch.randn(N, N, dtype=case.dtype)).sub_(0)
    normal = normal - proju_reference(x, normal)
    assert_within(
        case.manifold.retr(x, u + normal), case.manifold.retr(x, u), 300 * eps(case.dtype)
    )


# -- transport -----------------------------------------------------------------------------


def transports(case, x, u, v):
    """Every way to carry v along u, with the point it arrives at."""
    m = case.manifold
    y, z = m.retr(x, u), m.expmap(x, u)
    yield m.retr_transp(x, u, v)
    yield m.expmap_transp(x, u, v)
    yield y, m.transp_follow_retr(x, u, v)
    yield z, m.transp_follow_expmap(x, u, v)
    yield y, m.transp(x, y, v)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_transport_lands_in_the_tangent_space_of_the_point_it_arrives_at(case, norm):
    x = case.point(*BATCH)
    u, v = tangent_at(x, norm=norm), tangent_at(x)
    for y, carried in transports(case, x, u, v):
        assert_tangent(y, carried, ulps=20 * max(1.0, norm))
        assert case.manifold.check_vector_on_tangent(y, carried)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 10.0])
def test_transport_is_isometric(case, norm):
    x = case.point(*BATCH)
    u, v, w = tangent_at(x, norm=norm), tangent_at(x), tangent_at(x)
    before = inner_reference(v, w)
    for (y, v_y), (_, w_y) in zip(
        transports(case, x, u, v), transports(case, x, u, w), strict=True
    ):
        assert_within(case.manifold.inner(y, v_y, w_y), before, 20 * eps(case.dtype))


def test_the_ways_to_transport_agree(case):
    x = case.point(*BATCH)
    u, v, m = case.step(x), tangent_at(x), case.manifold
    y, v_y = m.retr_transp(x, u, v)
    assert_bit_equal(y, m.retr(x, u))
    assert_bit_equal(v_y, m.transp_follow_retr(x, u, v))
    assert_same_to_rounding(m.transp(x, y, v), v_y, ulps=100)
    z, v_z = m.expmap_transp(x, u, v)
    assert_bit_equal(z, m.expmap(x, u))
    assert_bit_equal(v_z, m.transp_follow_expmap(x, u, v))
    assert_same_to_rounding(m.transp(x, z, v), v_z, ulps=100)


def test_transport_carries_the_direction_of_the_step_itself(case):
    # Along t ↦ exp(tΩ)x the velocity is Ω exp(tΩ)x.
    x = case.point(*BATCH)
    u = case.step(x)
    omega = skewh(u @ x.mH)
    for y, carried in transports(case, x, u, u):
        assert_same_to_rounding(carried, omega @ y, ulps=100)


def test_a_reversible_step_undoes_itself(case):
    assert case.manifold.reversible == (case.k is None)
    x = case.point(*BATCH)
    # The others do not promise it, but steps of rank 2k come back all the same.
    u = case.step(x)
    y, u_y = case.manifold.retr_transp(x, u, u)
    x_again, u_again = case.manifold.retr_transp(y, -u_y, u_y)
    assert_same_to_rounding(x_again, x, ulps=200)
    assert_same_to_rounding(u_again, u, ulps=200)


# -- distances -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
def test_the_distance_along_a_short_geodesic_is_the_norm_of_its_direction(case, norm):
    x = case.point(*BATCH)
    v = tangent_at(x, norm=norm)
    y = case.manifold.expmap(x, v)
    length = case.manifold.norm(x, v)
    assert_within(length, norm, 10 * norm * eps(case.dtype))
    assert_within(case.manifold.dist(x, y), length, 20 * eps(case.dtype))
    assert_within(case.manifold.dist2(x, y), length**2, 40 * max(1.0, norm) * eps(case.dtype))


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
def test_logmap_undoes_expmap_of_a_short_vector(case, norm):
    x = case.point(*BATCH)
    v = tangent_at(x, norm=norm)
    recovered = case.manifold.logmap(x, case.manifold.expmap(x, v))
    assert_tangent(x, recovered)
    assert_within(recovered, v, 50 * eps(case.dtype))


def test_expmap_undoes_logmap_for_any_two_points(case):
    x, y = case.point(*BATCH), case.point(*BATCH)
    v = case.manifold.logmap(x, y)
    assert_tangent(x, v)
    assert_same_to_rounding(case.manifold.expmap(x, v), y, ulps=50)
    assert_same_to_rounding(case.manifold.norm(x, v), case.manifold.dist(x, y), ulps=20)


# -- batches -------------------------------------------------------------------------------

BROADCAST = {
    "projx": lambda m, x, y, u, v: m.projx(x + 0.1 * u),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: torch.cat(m.retr_transp(x, u, v), -1),
    "expmap_transp": lambda m, x, y, u, v: torch.cat(m.expmap_transp(x, u, v), -1),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "dist": lambda m, x, y, u, v: m.dist(x, y, keepdim=True),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y, keepdim=True),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v, keepdim=True),
    "component_inner": lambda m, x, y, u, v: m.component_inner(x, u, v),
    "norm": lambda m, x, y, u, v: m.norm(x, u, keepdim=True),
}


@pytest.mark.parametrize("method", BROADCAST)
def test_a_batch_is_its_members_one_by_one(case, method):
    x, y = case.point(*BATCH), case.point(*BATCH)
    u, v = torch.randn(2, *BATCH, N, N, dtype=case.dtype)
    call = BROADCAST[method]
    together = call(case.manifold, x, y, u, v)
    alone = [
        call(case.manifold, *(t[i, j] for t in (x, y, u, v))) for i in range(2) for j in range(3)
    ]
    expected = torch.stack(alone).view(*BATCH, *alone[0].shape)
    assert together.is_contiguous()
    assert_same_to_rounding(together, expected, ulps=200)


@pytest.mark.parametrize("method", sorted(set(BROADCAST) - {"projx", "inner", "norm"}))
def test_batch_dimensions_broadcast(case, method):
    x, y = case.point(2, 1), case.point(3)
    u, v = torch.randn(3, N, N, dtype=case.dtype), torch.randn(2, 1, N, N, dtype=case.dtype)
    call = BROADCAST[method]
    full = [t.expand(*BATCH, N, N).contiguous() for t in (x, y, u, v)]
    result = call(case.manifold, x, y, u, v)
    assert result.is_contiguous()
    assert_same_to_rounding(result, call(case.manifold, *full), ulps=50)


# -- what Scaled promises ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, None])
def test_scaling_divides_steps_and_multiplies_lengths(dtype, k):
    bare = LowRankUnitary(k)
    scaled = geoopt.Scaled(bare, 2.0)
    x, y = unitary(2, 2, N, N, dtype=dtype)
    u, v = tangent_at(x), tangent_at(x)
    assert_bit_equal(scaled.retr(x, u), bare.retr(x, u / 2))
    assert_bit_equal(scaled.expmap(x, u), bare.expmap(x, u / 2))
    for a, b in zip(scaled.retr_transp(x, u, v), bare.retr_transp(x, u / 2, v), strict=True):
        assert_bit_equal(a, b)
    assert_bit_equal(scaled.transp_follow_retr(x, u, v), bare.transp_follow_retr(x, u / 2, v))
    assert_bit_equal(scaled.dist(x, y), 2 * bare.dist(x, y))
    assert_bit_equal(scaled.dist2(x, y), 4 * bare.dist2(x, y))
    assert_bit_equal(scaled.logmap(x, y), 2 * bare.logmap(x, y))
    assert_bit_equal(scaled.inner(x, u, v), bare.inner(x, u, v))
    assert_bit_equal(scaled.egrad2rgrad(x, u), bare.egrad2rgrad(x, u))


def test_a_scaled_manifold_is_used_as_one():
    scaled = geoopt.Scaled(LowRankUnitary(2, retraction="cayley"), 4.0)
    assert repr(scaled) == "Scaled(LowRankUnitary)(k=2, retraction=cayley, sketch=tangent) manifold"
    assert scaled.k == 2
    assert scaled.ndim == 2
    point = geoopt.ManifoldParameter(unitary(6, 6), manifold=scaled)
    u = tangent_at(point.detach(), rank=4)
    assert_bit_equal(point.retr(u).detach(), scaled.base.retr(point.detach(), u / 4.0))


# -- products ------------------------------------------------------------------------------


@pytest.fixture(params=WIDE_DTYPES, ids=["float64", "complex128"])
def product(request):
    """A product of two of ours, a point, another one and two vectors, and their parts."""
    dtype = request.param
    parts = (LowRankUnitary(1), LowRankUnitary(None, retraction="polar"))
    shapes = ((6, 6), (3, 3))
    manifold = geoopt.ProductManifold(*zip(parts, shapes, strict=True))
    x = [unitary(*BATCH, *shape, dtype=dtype) for shape in shapes]
    y = [unitary(*BATCH, *shape, dtype=dtype) for shape in shapes]
    u = [torch.randn(*BATCH, *shape, dtype=dtype) for shape in shapes]
    v = [torch.randn(*BATCH, *shape, dtype=dtype) for shape in shapes]
    return manifold, parts, (x, y, u, v)


@pytest.mark.parametrize(
    "method",
    sorted(
        set(BROADCAST)
        - {"dist", "dist2", "inner", "norm", "component_inner", "retr_transp", "expmap_transp"}
    ),
)
def test_a_product_is_its_parts(product, method):
    manifold, parts, values = product
    packed = [manifold.pack_point(*value) for value in values]
    result = manifold.unpack_tensor(BROADCAST[method](manifold, *packed))
    for i, (part, each) in enumerate(zip(parts, result, strict=True)):
        expected = BROADCAST[method](part, *(value[i] for value in values))
        assert_same_to_rounding(each, expected, ulps=100)


@pytest.mark.parametrize("method", ["retr_transp", "expmap_transp"])
def test_a_product_steps_and_transports_its_parts(product, method):
    manifold, parts, (x, _, u, v) = product
    packed = [manifold.pack_point(*value) for value in (x, u, v)]
    results = [manifold.unpack_tensor(t) for t in getattr(manifold, method)(*packed)]
    for i, part in enumerate(parts):
        expected = getattr(part, method)(x[i], u[i], v[i])
        for each, other in zip(results, expected, strict=True):
            assert_same_to_rounding(each[i], other, ulps=100)


def test_lengths_in_a_product_add_as_squares(product):
    manifold, parts, (x, y, u, v) = product
    px, py, pu, pv = (manifold.pack_point(*value) for value in (x, y, u, v))
    inner = sum(part.inner(*each) for part, *each in zip(parts, x, u, v, strict=True))
    dist2 = sum(part.dist2(*each) for part, *each in zip(parts, x, y, strict=True))
    assert_same_to_rounding(manifold.inner(px, pu, pv), inner)
    assert_same_to_rounding(manifold.dist2(px, py), dist2)
    components = manifold.unpack_tensor(manifold.component_inner(px, pu, pv))
    for part, component, *each in zip(parts, components, x, u, v, strict=True):
        assert_same_to_rounding(component, part.component_inner(*each).expand_as(component))


def test_a_product_with_a_sphere_has_random_points_and_checks_them():
    manifold = geoopt.ProductManifold((LowRankUnitary(1), (4, 4)), (geoopt.Sphere(), 3))
    x = manifold.random(5, 19)
    assert manifold.check_point_on_manifold(x)
    u = manifold.egrad2rgrad(x, torch.randn(5, 19))
    assert manifold.check_vector_on_tangent(x, u)
    assert manifold.check_point_on_manifold(manifold.retr(x, u))
    assert not manifold.check_point_on_manifold(2 * x)


# -- exactness and order -------------------------------------------------------------------


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
