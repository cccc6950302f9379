"""The faults of the reference implementation that concern a manifold, none of them ours."""

import math

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import (
    DTYPES,
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    eps,
    hermitian,
    polar_reference,
    unitary,
    wide,
)

retractions = pytest.mark.parametrize("retraction", RETRACTIONS)
sketches = pytest.mark.parametrize("sketch", SKETCHES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def direct_step(manifold, x, d, step=-1.0, counter=0):
    """The step that the package's own optimizers take, without a dense tangent vector."""
    counters = torch.full(x.shape[:1], counter)
    sketched = manifold.sketch_direction(x, d, counters)
    return manifold.rotation(sketched, step, x.dtype)(x)


def dense_step(manifold, x, d, step=-1.0):
    """The step that geoopt's optimizers take."""
    return manifold.retr(x, step * manifold.egrad2rgrad(x, d))


both_ways = pytest.mark.parametrize("take", [direct_step, dense_step])


@both_ways
@retractions
@sketches
@dtypes
@pytest.mark.parametrize("k", [1, 3])
def test_a_zero_gradient_in_a_batch_moves_nothing_and_gives_no_nan(
    take, retraction, sketch, dtype, k
):
    manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
    x, d = unitary(3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype)
    d[1] = 0
    moved = take(manifold, x, d)
    assert_bit_equal(moved[1], x[1])
    assert_unitary(moved)
    assert not torch.equal(moved[0], x[0])
    assert_bit_equal(take(manifold, x, torch.zeros_like(d)), x)


@both_ways
@retractions
@sketches
@dtypes
@pytest.mark.parametrize("size", [1e-3, 1.0, -1.0, -2.0, 30.0])
def test_an_update_aligned_with_the_identity_leaves_a_unitary_matrix(
    take, retraction, sketch, dtype, size
):
    # All of it, and a part of it that cancels one direction of x for size -1.
    manifold = LowRankUnitary(1, retraction=retraction, sketch=sketch)
    x = torch.eye(6, dtype=dtype).expand(2, 6, 6)
    one_direction = torch.zeros(6, dtype=dtype)
    one_direction[2] = size
    d = torch.stack((size * x[0], one_direction.diag()))
    moved = take(manifold, x, d, step=1.0)
    assert_unitary(moved)
    if retraction != "polar" or sketch == "tangent" or take is dense_step:
        assert_within(moved, x, 10 * eps(dtype) * abs(size))


@both_ways
@retractions
@dtypes
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_symmetric_gradient_at_the_identity_moves_nothing(take, retraction, dtype, k):
    manifold = LowRankUnitary(k, retraction=retraction)
    x = torch.eye(6, dtype=dtype).expand(2, 6, 6).contiguous()
    d = hermitian(torch.randn(2, 6, 6, dtype=dtype))
    assert_within(take(manifold, x, d), x, 20 * eps(dtype))


@retractions
@sketches
def test_gradients_of_less_rank_than_k_do_no_harm_in_a_batch(retraction, sketch):
    manifold = LowRankUnitary(3, retraction=retraction, sketch=sketch)
    x = unitary(4, 8, 8)
    ranks = [0, 1, 2, 8]
    d = torch.stack([torch.randn(8, r).double() @ torch.randn(r, 8).double() for r in ranks])
    together = direct_step(manifold, x, d)
    assert_unitary(together)
    alone = torch.cat([direct_step(manifold, x[i : i + 1], d[i : i + 1]) for i in range(4)])
    assert_within(together, alone, 1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12, 1e-20])
@dtypes
def test_lsi_keeps_small_updates_whole(dtype, size):
    # The reference adds an absolute eps to a norm: at 1e-6 it keeps 22 % of the update.
    x = unitary(2, 8, 8, dtype=dtype)
    g = torch.randn(2, 8, 1, dtype=dtype) @ torch.randn(2, 1, 8, dtype=dtype)
    g = size * g / torch.linalg.matrix_norm(g, keepdim=True)
    manifold = LowRankUnitary(1, sketch="lsi")
    sketched = manifold.sketch_direction(x, g, torch.zeros(2).long())
    kept = sketched.rows.mH @ sketched.core @ sketched.rows @ x.to(wide(dtype))
    assert_within(kept / size, g.to(wide(dtype)) / size, 20 * eps(dtype))


@sketches
@dtypes
def test_small_gradients_turn_the_matrix_by_as_little(sketch, dtype):
    manifold = LowRankUnitary(1, sketch=sketch)
    x, d = unitary(2, 8, 8, dtype=dtype), torch.randn(2, 8, 8, dtype=dtype)
    counter = torch.zeros(2, dtype=torch.int64)
    whole, small = (
        manifold.rotation(manifold.sketch_direction(x, size * d, counter), 1e-3 / size, dtype)(x)
        for size in (1.0, 1e-6)
    )
    assert_within(small - x, whole - x, 10 * eps(dtype))


@pytest.mark.parametrize("k", [1, 3])
@dtypes
def test_column_keeps_the_largest_directions(dtype, k):
    # The reference, told to draw more columns than k, keeps the smallest directions.
    n, manifold = 12, LowRankUnitary(k, sketch="column")
    x, d = unitary(1, n, n, dtype=dtype), torch.randn(1, n, n, dtype=dtype)
    large = [2, 5, 11][:k]
    small = [j for j in range(n) if j not in large]
    d[..., small] *= 1e-5
    for counter in range(100):
        sketched = manifold.sketch_direction(x, d, torch.tensor([counter]))
        kept = sketched.rows.mH @ sketched.core @ sketched.rows @ x.to(wide(dtype))
        error = torch.linalg.matrix_norm(kept - d) / torch.linalg.matrix_norm(d)
        assert error < 1e-4


@both_ways
@retractions
@sketches
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_double_precision_keeps_its_digits(take, retraction, sketch, dtype):
    # complex64 inside would cost half of them.
    manifold = LowRankUnitary(1, retraction=retraction, sketch=sketch)
    x = unitary(2, 8, 8, dtype=dtype)
    for _ in range(100):
        x = take(manifold, x, torch.randn(2, 8, 8, dtype=dtype), step=-0.1)
    assert x.dtype == dtype
    assert_within(x.mH @ x, torch.eye(8), 1e-13)


@pytest.mark.parametrize("name", ["lsi", "column"])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_direct_step_of_a_rank_one_update_is_right_to_double_precision(dtype, name):
    manifold = LowRankUnitary(1, retraction="polar", sketch=name)
    x = unitary(2, 8, 8, dtype=dtype)
    d = torch.randn(2, 8, 1, dtype=dtype) @ torch.randn(2, 1, 8, dtype=dtype) / 8
    assert_within(direct_step(manifold, x, d), polar_reference(x - d), 1e-13)


@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e2])
@both_ways
@retractions
@sketches
@dtypes
def test_steps_of_any_size_neither_leave_the_manifold_nor_amplify_its_error(
    take, retraction, sketch, dtype, size
):
    # The reference divides by the smallest singular value of x + abᴴ.
    manifold = LowRankUnitary(1, retraction=retraction, sketch=sketch)
    n, count = 8, 50
    x = unitary(2, n, n, dtype=dtype)
    for counter in range(count):
        d = torch.randn(2, n, n, dtype=dtype)
        d = d / torch.linalg.matrix_norm(d, keepdim=True)
        x = (
            direct_step(manifold, x, d, -size, counter)
            if take is direct_step
            else take(manifold, x, d, -size)
        )
    bound = 10 * math.sqrt(count) * eps(dtype) + 1e-13
    assert_within(torch.linalg.matrix_norm(x.mH @ x - torch.eye(n)), 0, bound)


@sketches
@pytest.mark.parametrize("k", [2, None])
def test_the_optimizers_entry_points_change_none_of_their_arguments(sketch, k):
    manifold = LowRankUnitary(k, sketch=sketch)
    x, d = unitary(2, 6, 6), torch.randn(2, 6, 6, dtype=torch.float64)
    values = (x, d, torch.tensor([4, 5]))
    before = [t.clone() for t in values]
    sketched = manifold.sketch_direction(*values)
    core = sketched.core.clone()
    manifold.rotation(sketched, -0.1, x.dtype)(x)
    assert_bit_equal(sketched.core, core)
    for value, copied in zip(values, before, strict=True):
        assert_bit_equal(value, copied)
