import pytest
import torch

from geoopt_projunn.linalg.rows import IN_TORCH, generator_rows, row_norms
from tests._asserts import assert_same_to_rounding, assert_within
from tests._matrices import DTYPES, eps, hermitian, skewh, unitary
from tests._modes import Recorder


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_times_adjoint_multiplies_by_the_adjoint(dtype, batch):
    rows, x = torch.randn(batch, 3, 7, dtype=dtype), torch.randn(batch, 7, 7, dtype=dtype)
    assert_same_to_rounding(IN_TORCH.times_adjoint(rows, x), rows @ x.mH)


@pytest.mark.parametrize("dtype", DTYPES)
def test_times_adjoint_makes_no_copy_of_the_large_factor(dtype):
    rows, x = torch.randn(2, 3, 40, dtype=dtype), torch.randn(2, 40, 40, dtype=dtype)
    with Recorder() as recorder:
        IN_TORCH.times_adjoint(rows, x)
    assert recorder.largest == rows.numel()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_generator_rows_are_the_adjoint_of_the_generator_times_a_thin_matrix(dtype, batch):
    x, d = unitary(batch, 7, 7, dtype=dtype), torch.randn(batch, 7, 7, dtype=dtype)
    a = torch.randn(batch, 7, 3, dtype=dtype)
    expected = (skewh(d @ x.mH) @ a).mH
    assert_same_to_rounding(generator_rows(a.mH.contiguous(), x, d), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_generator_rows_of_a_normal_direction_are_rounding(dtype):
    x = unitary(1, 9, 9, dtype=dtype)
    normal = hermitian(torch.randn(9, 9, dtype=dtype)) @ x
    rows = torch.randn(1, 2, 9, dtype=dtype)
    assert_within(generator_rows(rows, x, normal), 0, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_generator_rows_create_nothing_of_the_size_of_the_point(dtype):
    x, d, rows = (
        torch.randn(*size, dtype=dtype) for size in ((1, 40, 40), (1, 40, 40), (1, 3, 40))
    )
    with Recorder() as recorder:
        generator_rows(rows, x, d)
    assert recorder.largest == rows.numel()


# Both sides of every bound at which the form of the product changes.
@pytest.mark.parametrize("rank", [1, 2, 4, 5, 9])
@pytest.mark.parametrize(("batch", "n"), [(2, 20), (9, 20), (2, 512)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_product_adds_in_place_and_creates_nothing_of_the_size_of_x(dtype, batch, n, rank):
    x = torch.randn(batch, n, n, dtype=dtype)
    rows, factor = (torch.randn(batch, rank, n, dtype=dtype) for _ in range(2))
    expected, place = x + rows.mH @ factor, x.data_ptr()
    with Recorder() as recorder:
        IN_TORCH.add_product_(x, rows, factor)
    assert x.data_ptr() == place
    assert recorder.largest < x.numel()
    assert_same_to_rounding(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_product_takes_matrices_of_any_layout(dtype):
    rows, factor = (torch.randn(9, 2, 20, dtype=dtype) for _ in range(2))
    wide, square = torch.randn(9, 20, 40, dtype=dtype), torch.randn(9, 20, 20, dtype=dtype)
    for x in (wide[..., :20], wide[..., ::2], wide[..., 20:].mT, square.conj()):
        expected = x + rows.mH @ factor
        IN_TORCH.add_product_(x, rows, factor)
        assert_same_to_rounding(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_norms_are_those_of_the_rows_however_they_lie(dtype):
    rows = torch.randn(3, 2, 7, dtype=dtype)
    expected = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    for same in (rows, rows.conj(), rows.mT.contiguous().mT):
        assert_same_to_rounding(row_norms(same), expected)
