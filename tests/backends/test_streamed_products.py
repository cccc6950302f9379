"""Products that read a matrix once are those of torch, however it is stored."""

import pytest
import torch

from geoopt_projunn.backends.cpu.products import StreamedProducts
from geoopt_projunn.linalg.rows import Products
from tests._asserts import assert_within


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("by_columns", [False, True])
def test_so_they_are_for_large_matrices(dtype, by_columns):
    ours, theirs = StreamedProducts(), Products()
    x = torch.randn(1, 300, 400, dtype=dtype)
    x = x.mT.contiguous().mT if by_columns else x
    left, right = torch.randn(1, 2, 300, dtype=dtype), torch.randn(1, 2, 400, dtype=dtype)
    both = (products.both_sides(left, right, x) for products in (ours, theirs))
    for actual, expected in zip(*both, strict=True):
        assert_within(actual, expected, 1e-3)
    y = x.clone()
    ours.add_product_(x, left, right)
    theirs.add_product_(y, left, right)
    assert_within(x, y, 1e-4)
