import pytest
import torch

from geoopt_projunn.linalg.basis import block_gram_schmidt, orthonormalize
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import WIDE_DTYPES
from tests._modes import Recorder

# A CPU takes Householder's way, a GPU the other; both must hold everywhere.
pytestmark = [
    pytest.mark.parametrize("method", [orthonormalize, block_gram_schmidt]),
    pytest.mark.parametrize("dtype", WIDE_DTYPES),
]

# What Gram-Schmidt calls dependent: below this fraction of a row.
DEPENDENT = 1e-10


def assert_gram_is_zero_or_one(q):
    gram = q @ q.mH
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    assert_within(gram, torch.diag_embed(diagonal.round()), 1e-14)
    assert set(diagonal.round().flatten().tolist()) <= {0.0, 1.0}


def assert_spans(q, rows, tolerance):
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = rows / norms.where(norms > 0, 1.0)
    assert_within(unit - unit @ q.mH @ q, 0, tolerance)


@pytest.mark.parametrize("size", [(1, 5), (2, 5), (3, 8), (5, 5), (4, 2, 3, 9)])
def test_independent_rows_give_an_orthonormal_basis_of_their_span(method, dtype, size):
    rows = torch.randn(*size, dtype=dtype)
    q = method(rows)
    assert q.shape == rows.shape
    assert_within(q @ q.mH, torch.eye(size[-2], dtype=dtype), 1e-14)
    assert_spans(q, rows, 1e-14)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_exactly_dependent_rows_give_a_basis_of_their_span(method, dtype, count):
    rows = torch.randn(count, 1, dtype=dtype) * torch.randn(1, 12, dtype=dtype)
    q = method(rows)
    assert_gram_is_zero_or_one(q)
    assert_spans(q, rows, DEPENDENT)


@pytest.mark.parametrize("apart", [1e-4, 1e-6, 1e-8, 1e-9, 1e-10, 1e-11, 1e-13, 1e-15])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_nearly_dependent_rows_give_an_orthonormal_basis_of_their_span(method, dtype, count, apart):
    common = torch.randn(1, 16, dtype=dtype)
    rows = common + apart * torch.randn(count, 16, dtype=dtype)
    q = method(rows)
    assert_gram_is_zero_or_one(q)
    assert_spans(q, rows, 4 * DEPENDENT)


def test_rows_in_pairs_that_nearly_agree_give_an_orthonormal_basis(method, dtype):
    # Rows of the second half repeat those of the first, as Z does where Q spans the range.
    first = torch.randn(4, 16, dtype=dtype)
    rows = torch.cat((first, first.flip(0) + 1e-12 * torch.randn(4, 16, dtype=dtype)))
    q = method(rows)
    assert_gram_is_zero_or_one(q)
    assert_spans(q, rows, 4 * DEPENDENT)


def test_zero_rows_give_finite_rows_orthogonal_to_the_others(method, dtype):
    rows = torch.randn(4, 9, dtype=dtype)
    rows[1] = rows[3] = 0
    q = method(rows)
    assert_gram_is_zero_or_one(q)
    assert_spans(q, rows, 1e-14)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_zero_matrix_gives_a_finite_basis(method, dtype, count):
    assert_gram_is_zero_or_one(method(torch.zeros(count, 6, dtype=dtype)))


def test_a_zero_slice_leaves_the_other_slices_of_a_batch_as_they_are(method, dtype):
    rows = torch.randn(3, 4, 9, dtype=dtype)
    rows[1] = 0
    q = method(rows)
    assert_gram_is_zero_or_one(q)
    for i in (0, 2):
        assert_within(q[i], method(rows[i]), 1e-14)


@pytest.mark.parametrize("scale", [1e-100, 1e-45, 1e-30, 1e30, 1e100])
def test_rows_of_any_size_count_alike(method, dtype, scale):
    rows = torch.randn(4, 9, dtype=dtype)
    scaled = rows * torch.tensor([1.0, scale, 1.0, scale], dtype=dtype).unsqueeze(-1)
    q = method(scaled)
    assert_within(q @ q.mH, torch.eye(4, dtype=dtype), 1e-14)
    assert_spans(q, rows, 1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3])
def test_a_bad_entry_shows_and_stays_in_its_slice(method, dtype, bad, place):
    rows = torch.randn(2, 4, 9, dtype=dtype)
    good = method(rows)
    rows[0, place, 5] = bad
    q = method(rows)
    assert not q[0].isfinite().all()
    assert_bit_equal(q[1], good[1])


def test_nothing_waits_for_the_device(method, dtype):
    with Recorder() as recorder:
        method(torch.randn(2, 4, 9, dtype=dtype))
        method(torch.randn(2, 4, 9, dtype=dtype, device="meta"))
    assert not recorder.forbidden
