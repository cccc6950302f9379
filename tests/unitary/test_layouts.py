"""Strides, autocast, shared memory and sizes do not matter to any method."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding
from tests._matrices import DTYPES

from ._methods import METHODS, arguments, tensors

ranks = pytest.mark.parametrize("k", [1, None])
methods = pytest.mark.parametrize("method", METHODS)


@methods
@ranks
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_strides_do_not_matter_and_results_are_contiguous(dtype, k, method):
    manifold, plain = LowRankUnitary(k), arguments(2, dtype=dtype)
    strided = [t.mT.contiguous().mT for t in plain]
    every_other = [t.repeat_interleave(2, -1)[..., ::2] for t in plain]
    lazy = [t.conj().resolve_conj().conj() for t in plain]
    expected = tensors(METHODS[method](manifold, *plain))
    for layout in (strided, every_other, lazy):
        for one, other in zip(tensors(METHODS[method](manifold, *layout)), expected, strict=True):
            assert one.is_contiguous()
            assert_same_to_rounding(one, other, ulps=200)


@methods
@ranks
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_autocast_changes_no_bit(dtype, half, k, method):
    manifold, values = LowRankUnitary(k), arguments(2, dtype=dtype)
    expected = tensors(METHODS[method](manifold, *values))
    with torch.autocast("cpu", dtype=half):
        result = tensors(METHODS[method](manifold, *values))
    for one, other in zip(result, expected, strict=True):
        assert_bit_equal(one, other)


@methods
@ranks
def test_results_share_no_memory_with_arguments_and_arguments_keep_their_bits(k, method):
    values = arguments(2)
    before = [t.clone() for t in values]
    for result in tensors(METHODS[method](LowRankUnitary(k), *values)):
        result.fill_(7)
    for value, copied in zip(values, before, strict=True):
        assert_bit_equal(value, copied)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@methods
def test_the_smallest_matrices_work(dtype, n, method):
    for k in (None,) if n == 1 else (1, None):
        for result in tensors(METHODS[method](LowRankUnitary(k), *arguments(2, n=n, dtype=dtype))):
            assert result.isfinite().all()


@methods
@ranks
def test_an_empty_batch_gives_an_empty_batch(k, method):
    manifold = LowRankUnitary(k)
    for of_one, of_none in zip(
        *(tensors(METHODS[method](manifold, *arguments(count))) for count in (1, 0)), strict=True
    ):
        assert of_none.shape == (0, *of_one.shape[1:])
