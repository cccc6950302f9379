"""The tangent sketch is a projection of the generator, and always makes progress."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import normalize

from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import (
    REAL_DTYPES,
    WIDE_DTYPES,
    eps,
    hermitian,
    inner_reference,
    skew,
    skewh,
    unitary,
    wide,
)
from tests._sketching import captured, dtypes, generator, hash_rows, omega, run, sizes

pytestmark = pytest.mark.usefixtures("each_way", "without_gradients")


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
        toward = (rows.conj() * (anywhere + 1j * anywhere.roll(-1, -1))).real.sum(-1, keepdim=True)
        sign = torch.where(toward < 0, -1, 1)
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


@dtypes
def test_a_direction_without_tangent_part_has_a_core_of_rounding(dtype):
    # Here the normal part is all there is; the tangent sketch must not take it for a step.
    x = unitary(4, 8, 8, dtype=wide(dtype))
    d = (hermitian(torch.randn(4, 8, 8, dtype=wide(dtype))) @ x).to(dtype)
    x = x.to(dtype)
    for k in (1, 3):
        assert_within(run("tangent", x, d, k).core, 0, 100 * eps(dtype))


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


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("phase", [1, 1j, (1 + 1j) / 2**0.5])
def test_an_ascent_is_sketched_as_the_descent_whatever_the_phase_of_a_gradient(k, phase):
    """And rounding of what would be zero decides nothing."""
    x = torch.eye(24, dtype=torch.complex128)
    d = phase * torch.randn(24, 24, dtype=torch.float64).to(x.dtype)
    rounded = d + 1e-17 * torch.randn_like(d)
    for counter in range(12):
        kept = generator(run("tangent", x, d, k, counter))
        assert_within(generator(run("tangent", x, -d, k, counter)), -kept, 1e-12)
        assert_within(generator(run("tangent", x, rounded, k, counter)), kept, 1e-12)
