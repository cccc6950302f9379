import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import normalize

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.linalg.hashing import uniform
from geoopt_projunn.sketches import SKETCHES, exact
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests._matrices import (
    DTYPES,
    REAL_DTYPES,
    WIDE_DTYPES,
    eps,
    hermitian,
    inner_reference,
    polar_reference,
    skew,
    skewh,
    unitary,
    wide,
)

pytestmark = pytest.mark.usefixtures("each_way", "without_gradients")

dtypes = pytest.mark.parametrize("dtype", DTYPES)
sketches = pytest.mark.parametrize("name", SKETCHES)
SIZES = [(7, 1), (7, 3), (8, 2), (8, 4), (2, 1), (3, 1)]
sizes = pytest.mark.parametrize(("n", "k"), SIZES, ids=str)


def run(name, x, d, k, counter=0):
    """Sketch one matrix, or a batch at the same counter."""
    x, d = (t if t.dim() == 3 else t[None] for t in (x, d))
    return SKETCHES[name](x, d, k, torch.full(x.shape[:1], counter))


def generator(sketched):
    """What the sketch stands for: W skewh(K) Wᴴ."""
    return sketched.rows.mH @ skewh(sketched.core) @ sketched.rows


def approximation(sketched, x):
    """What an ambient sketch makes of the direction: W K Wᴴ x."""
    return sketched.rows.mH @ sketched.core @ sketched.rows @ x.to(sketched.core.dtype)


def omega(x, d):
    return skewh(d.to(wide(d.dtype)) @ x.to(wide(x.dtype)).mH)


def captured(sketched, x, d):
    """Re⟨g, sketch of g⟩: what a short step along the sketch gains."""
    return inner_reference(omega(x, d), generator(sketched))


@sizes
@dtypes
@sketches
def test_the_basis_is_orthonormal_and_has_2k_rows(name, dtype, n, k):
    sketched = run(name, unitary(2, n, n, dtype=dtype), torch.randn(2, n, n, dtype=dtype), k)
    assert sketched.rows.shape == (2, min(2 * k, n), n)
    assert sketched.rows.dtype == sketched.core.dtype == wide(dtype)
    assert_within(sketched.rows @ sketched.rows.mH, torch.eye(min(2 * k, n)), 1e-14)


def hash_rows(k, n, counter, dtype):
    return uniform(torch.tensor(counter), k * n).view(k, n).to(dtype)


@sizes
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_tangent_sketch_is_all_of_the_generator_that_touches_k_directions(dtype, n, k):
    x, d = unitary(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    whole = omega(x, d)
    for counter in (0, 5):
        count = min(4 * k, n)
        turn = [(counter * count + i) % n for i in range(count)]
        weights, anywhere = hash_rows(k, count + n, counter, dtype).split((count, n), -1)
        few = d[turn] if k == 1 else d[:, turn].mH
        rows = normalize(weights @ few, dim=-1)
        sign = torch.where(rows.real.sum(-1, keepdim=True) < 0, -1, 1)
        rows = rows + sign * anywhere * 0.3 * (3 / n) ** 0.5
        q = torch.linalg.qr(whole @ (x @ rows.mH if k == 1 else rows.mH)).Q
        p = q @ q.mH
        expected = p @ whole + whole @ p - p @ whole @ p
        assert_within(generator(run("tangent", x, d, k, counter)), expected, 1e-12)


@sizes
@dtypes
def test_the_tangent_sketch_is_an_orthogonal_projection_of_the_generator(dtype, n, k):
    x, d = unitary(2, n, n, dtype=dtype), torch.randn(2, n, n, dtype=dtype)
    for counter in (0, 5):
        sketched = run("tangent", x, d, k, counter)
        kept = generator(sketched)
        norm2 = inner_reference(kept, kept)
        assert_within(captured(sketched, x, d) / norm2, 1.0, 50 * eps(dtype))
        # What is left touches n - k directions only.
        left = torch.linalg.svdvals(omega(x, d) - kept)
        assert_within(left[..., n - k :], 0, 100 * eps(dtype))


@sizes
@dtypes
def test_the_core_of_the_tangent_sketch_is_skew_to_the_last_bit(dtype, n, k):
    x, d = unitary(3, n, n, dtype=dtype), torch.randn(3, n, n, dtype=dtype)
    core = run("tangent", x, d, k).core
    assert_bit_equal(core, -core.mH)


@dtypes
def test_the_whole_generator_is_skew_to_the_last_bit(dtype):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    sketched = exact(x, d)
    assert sketched.rows is None
    assert_bit_equal(sketched.core, -sketched.core.mH)
    assert_within(sketched.core, omega(x, d), 10 * eps(sketched.core.dtype))


def lsi_reference(d, k, counter):
    n = d.shape[-1]
    v = torch.linalg.qr(d.mH @ hash_rows(k, n, counter, d.dtype).mH).Q
    return d @ v @ v.mH


@sizes
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_lsi_keeps_the_row_space_that_random_test_vectors_find(dtype, n, k):
    x, d = unitary(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    for counter in (0, 5):
        expected = lsi_reference(d, k, counter)
        assert_within(approximation(run("lsi", x, d, k, counter), x)[0], expected, 1e-12)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_column_keeps_the_space_of_k_columns(dtype):
    n, k = 6, 2
    x, d = unitary(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    kept = approximation(run("column", x, d, k), x)[0]
    pairs = torch.combinations(torch.arange(n), k)
    u = torch.linalg.qr(d[:, pairs].movedim(0, 1)).Q
    errors = torch.linalg.matrix_norm(u @ (u.mH @ d) - kept)
    assert errors.min() < 1e-13


@pytest.mark.parametrize("k", [1, 2])
def test_column_draws_without_replacement_by_squared_norms(k):
    # With orthogonal columns the basis says which were drawn.
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    n, draws = 5, 6000
    x = torch.eye(n, dtype=torch.float64).expand(draws, n, n)
    d = norms.diag().expand(draws, n, n)
    sketched = SKETCHES["column"](x, d, k, torch.arange(draws))
    drawn = torch.linalg.vector_norm(sketched.rows[:, :k], dim=-2).round()
    assert (drawn.sum(-1) == k).all()
    p = norms**2 / (norms**2).sum()
    expected = p
    if k == 2:  # drawn first, or second after any other
        expected = p + torch.stack(
            [sum(p[j] * p[i] / (1 - p[j]) for j in range(n) if j != i) for i in range(n)]
        )
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((drawn.mean(0) - expected).abs() < 4 * spread).all()


@pytest.mark.parametrize("name", ["lsi", "column"])
@pytest.mark.parametrize("rank", [1, 2])
@dtypes
def test_the_papers_sketches_keep_a_direction_of_rank_k_whole(name, dtype, rank):
    x = unitary(2, 7, 7, dtype=dtype)
    d = torch.randn(2, 7, rank, dtype=dtype) @ torch.randn(2, rank, 7, dtype=dtype)
    assert_same_to_rounding(approximation(run(name, x, d, 2), x).to(dtype), d, ulps=100)


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_the_tangent_sketch_keeps_a_real_direction_of_rank_one_whole(dtype):
    x = unitary(2, 7, 7, dtype=dtype)
    d = torch.randn(2, 7, 1, dtype=dtype) @ torch.randn(2, 1, 7, dtype=dtype)
    assert_within(generator(run("tangent", x, d, 1)), omega(x, d), 100 * eps(dtype))


@pytest.mark.parametrize("rank", [1, 2, 3])
@dtypes
def test_the_tangent_sketch_keeps_a_direction_of_rank_half_k_whole(dtype, rank):
    # The gradient of a batch of that size; its generator has twice the rank.
    x = unitary(2, 13, 13, dtype=dtype)
    d = torch.randn(2, 13, rank, dtype=dtype) @ torch.randn(2, rank, 13, dtype=dtype)
    assert_within(generator(run("tangent", x, d, 2 * rank)), omega(x, d), 200 * eps(dtype))


@pytest.mark.parametrize("rank", [2, 4])
@dtypes
def test_the_tangent_sketch_keeps_a_generator_of_rank_k_whole(dtype, rank):
    x = unitary(2, 9, 9, dtype=dtype)
    whole = skew(2, 9, 9, rank=rank, norm=1.0, dtype=wide(dtype))
    d = (whole @ x.to(whole.dtype)).to(dtype)
    assert_within(generator(run("tangent", x, d, 4)), whole, 100 * eps(dtype))


@pytest.mark.parametrize("step", [-1e-6, -0.1, -1.0, -30.0, 2.0])
@pytest.mark.parametrize("name", ["lsi", "column"])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_papers_direct_step_lands_on_the_nearest_unitary_matrix(dtype, name, step):
    # projUNN-D: the polar factor of x + a bᴴ, a bᴴ the rank-k approximation of the step.
    x, d = unitary(3, 7, 7, dtype=dtype), torch.randn(3, 7, 7, dtype=dtype)
    manifold = LowRankUnitary(2, retraction="polar", sketch=name)
    sketched = manifold.sketch_direction(x, d, torch.arange(3))
    moved = manifold.rotation(sketched, step, dtype)(x)
    assert_within(moved, polar_reference(x + step * approximation(sketched, x)), 1e-12)


@dtypes
def test_a_direction_without_tangent_part_has_a_core_of_rounding(dtype):
    # Here the normal part is all there is; the tangent sketch must not take it for a step.
    x = unitary(4, 8, 8, dtype=wide(dtype))
    d = (hermitian(torch.randn(4, 8, 8, dtype=wide(dtype))) @ x).to(dtype)
    x = x.to(dtype)
    for k in (1, 3):
        assert_within(run("tangent", x, d, k).core, 0, 100 * eps(dtype))


@pytest.mark.parametrize("name", ["lsi", "column"])
@dtypes
def test_the_papers_sketches_of_a_small_normal_direction_have_no_tangent_part(dtype, name):
    x = unitary(4, 8, 8, dtype=wide(dtype))
    h = torch.randn(4, 8, 2, dtype=wide(dtype))
    d = (h @ h.mH @ x).to(dtype)
    x = x.to(dtype)
    assert_within(generator(run(name, x, d, 2)), 0, 1000 * eps(dtype))


@dtypes
@sketches
def test_a_zero_direction_has_a_zero_core_beside_others_that_have_not(dtype, name):
    x, d = unitary(3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype)
    d[1] = 0
    sketched = run(name, x, d, 2)
    assert not sketched.core[1].any()
    assert sketched.rows.isfinite().all()
    assert sketched.core[0].any()
    assert sketched.core[2].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e10, 1e20])
@dtypes
@sketches
def test_a_scaled_direction_has_the_scaled_generator(dtype, name, scale):
    x, d = unitary(3, 8, 8, dtype=dtype), torch.randn(3, 8, 8, dtype=dtype)
    for k in (1, 3):
        plain = generator(run(name, x, d, k, counter=2))
        scaled = generator(run(name, x, d * scale, k, counter=2))
        assert_within(scaled / scale, plain, 100 * eps(dtype))


@dtypes
@sketches
def test_equal_calls_give_equal_bits_and_touch_no_generator(dtype, name):
    x, d = unitary(2, 8, 8, dtype=dtype), torch.randn(2, 8, 8, dtype=dtype)
    state = torch.get_rng_state()
    first, second = (run(name, x, d, 2, counter=4) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_bit_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


@dtypes
@sketches
def test_a_sketch_does_not_depend_on_the_rest_of_the_batch(dtype, name):
    x, d = unitary(5, 8, 8, dtype=dtype), torch.randn(5, 8, 8, dtype=dtype)
    together = generator(run(name, x, d, 2, counter=7))
    alone = torch.cat([generator(run(name, x[i], d[i], 2, counter=7)) for i in range(5)])
    assert_within(together, alone, 50 * eps(dtype))


@sketches
def test_each_step_draws_anew(name):
    x, d = unitary(8, 8), torch.randn(8, 8, dtype=torch.float64)
    kept = torch.cat([generator(run(name, x, d, 1, counter)) for counter in range(20)])
    apart = torch.linalg.matrix_norm(kept[:, None] - kept[None])
    different = apart[~torch.eye(20, dtype=torch.bool)] > 1e-6
    # Two steps may draw the same one of eight columns, but not often.
    assert different.double().mean() > 0.7


@dtypes
@sketches
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_direction_that_is_not_finite_shows_in_its_own_slice_only(dtype, name, bad):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    good = run(name, x, d, 2)
    d[0, 3, 4] = bad
    sketched = run(name, x, d, 2)
    assert not (sketched.core[0].isfinite().all() and sketched.rows[0].isfinite().all())
    assert_bit_equal(sketched.core[1], good.core[1])


@dtypes
@sketches
def test_the_arguments_are_left_as_they_were(dtype, name):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    counter = torch.tensor([3, 9])
    before = [t.clone() for t in (x, d, counter)]
    SKETCHES[name](x, d, 2, counter)
    for tensor, copy in zip((x, d, counter), before, strict=True):
        assert_bit_equal(tensor, copy)


def assert_progress(x, d, k, least):
    """No step loses, and each gains at least ``least``."""
    for counter in range(5):
        gain = captured(run("tangent", x, d, k, counter), x, d)
        assert (gain >= least).all(), f"gains {gain.tolist()}, not {least}"


integers = st.integers(-3, 3)


@st.composite
def directions(draw):
    """A small integer generator, sparse or not, beside a much larger normal part."""
    n = draw(st.integers(2, 6))
    k = draw(st.integers(1, n // 2))
    imaginary = draw(st.booleans())

    def matrix():
        entries = draw(st.lists(integers, min_size=n * n, max_size=n * n))
        return torch.tensor(entries, dtype=torch.float64).view(n, n)

    tangent, normal = matrix(), draw(st.sampled_from([0, 1, 100])) * matrix()
    if imaginary:
        tangent, normal = tangent + 1j * matrix(), normal + 0j
    turned = draw(st.booleans())
    return k, skewh(tangent), hermitian(normal), turned


@given(case=directions())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_whatever_the_gradient_every_tangent_sketch_makes_progress(case):
    k, whole, normal, turned = case
    n = whole.shape[-1]
    x = unitary(n, n, dtype=whole.dtype) if turned else torch.eye(n, dtype=whole.dtype)
    d = (whole + normal) @ x
    # Any direction in the range of the generator gains the square of its smallest speed.
    speeds = torch.linalg.svdvals(whole)
    moving = speeds[speeds > 1e-9]
    rounding = 1e-13 * inner_reference(d, d).item()
    assert_progress(x, d, k, 0.99 * moving.min().item() ** 2 if moving.numel() else -rounding)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("n", [4, 9])
def test_a_dominant_normal_part_elsewhere_does_not_hide_a_plane(dtype, n):
    x = torch.eye(n, dtype=dtype)
    for i, j in ((0, 1), (1, n - 1), (n - 2, n - 1)):
        d = torch.zeros(n, n, dtype=dtype)
        d[i, j], d[j, i] = 1e-3, -1e-3
        quiet = [m for m in range(n) if m not in (i, j)]
        d[quiet, quiet] = 100.0
        assert_progress(x, d, 1, least=2 * 0.99e-6)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_tangent_sketch_finds_the_leading_plane(dtype):
    # One plane turns ten times faster than the nine others. A real one is found as a whole; of
    # a complex one at least the better of its two eigenvectors.
    n, q = 20, unitary(20, 20, dtype=dtype)
    speeds = torch.tensor([10.0] + [1.0] * 9, dtype=torch.float64)
    blocks = torch.block_diag(*[torch.tensor([[0.0, -s], [s, 0.0]]) for s in speeds])
    x = unitary(n, n, dtype=dtype)
    d = q @ blocks.to(dtype) @ q.mH @ x
    gains = [captured(run("tangent", x, d, 1, counter), x, d) for counter in range(200)]
    share = torch.cat(gains) / (2 * 10.0**2)
    # Not in every draw: test vectors may happen to lie across.
    assert share.quantile(0.05) > (0.45 if dtype.is_complex else 0.9)
