"""The paper's sketches keep what they draw."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.sketches import SKETCHES
from tests._asserts import assert_same_to_rounding, assert_within
from tests._matrices import WIDE_DTYPES, eps, polar_reference, unitary, wide
from tests._sketching import approximation, dtypes, generator, hash_rows, run, sizes

pytestmark = pytest.mark.usefixtures("each_way", "without_gradients")


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


@pytest.mark.parametrize("name", ["lsi", "column"])
@dtypes
def test_the_papers_sketches_of_a_small_normal_direction_have_no_tangent_part(dtype, name):
    x = unitary(4, 8, 8, dtype=wide(dtype))
    h = torch.randn(4, 8, 2, dtype=wide(dtype))
    d = (h @ h.mH @ x).to(dtype)
    x = x.to(dtype)
    assert_within(generator(run(name, x, d, 2)), 0, 1000 * eps(dtype))
