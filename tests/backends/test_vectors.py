"""The C++ kernels with every width of vectors that this processor has."""

import pytest
import torch

from geoopt_projunn.backends.cpu import kernels, operators
from tests._asserts import assert_unitary
from tests._matrices import DTYPES, eps

from ._steps import METHODS, assert_alike, bound, parameters, run

pytestmark = pytest.mark.skipif(kernels.LACK is not None, reason="the C++ kernels are missing")


def widths():
    if kernels.LACK is not None:
        return [16]
    known = []
    for width in (64, 32, 16):
        try:
            kernels.kernels.use_vectors(width)
        except ValueError:
            continue
        known.append(width)
    kernels.kernels.use_vectors(max(known))
    return known


@pytest.fixture(params=widths(), ids="{} bytes".format)
def width(request):
    before = kernels.kernels.use_vectors(request.param)
    yield request.param
    assert kernels.kernels.use_vectors(before) == request.param


@pytest.mark.parametrize("dtype", DTYPES)
# Whole tiles, vectors, blocks of rows and panels, and what is left of each.
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (4, 64), (13, 47), (67, 130), (301, 9), (9, 3000)]
)
@pytest.mark.parametrize("rows", [(0, 1), (1, 0), (2, 3), (4, 4), (7, 9), (13, 16), (16, 0)])
def test_products_are_those_of_torch(width, rows, shape, dtype):
    (n, m), wide = shape, torch.complex128 if dtype.is_complex else torch.float64
    x, left, right, factor, by = (
        torch.randn(2, *size, dtype=dtype)
        for size in (shape, (rows[0], n), (rows[1], m), (rows[1], m), (rows[1], n))
    )

    def assert_close(actual, expected, terms):
        # A missing term would be of size 1.
        atol = 8 * eps(dtype) * max(4, terms)
        torch.testing.assert_close(actual.to(wide), expected, rtol=0, atol=atol)

    of_left, of_right = operators.both_sides(left, right, x)
    assert_close(of_left, left.to(wide) @ x.to(wide), n)
    assert_close(of_right, right.to(wide) @ x.to(wide).mH, m)
    expected = x.to(wide) + by.to(wide).mH @ factor.to(wide)
    operators.add_product_(x, by, factor)
    assert_close(x, expected, rows[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full rank"])
@pytest.mark.parametrize("shape", [(2, 24, 24), (140, 61)])
def test_steps_are_those_of_the_reference(width, shape, method, dtype):
    params = parameters(1, shape, dtype, method)
    actual, expected = run("cpu", params, "nesterov"), run("reference", params, "nesterov")
    assert_alike(actual, expected, bound(dtype, shape))
    for p in actual[0]:
        assert_unitary(p)


def test_other_widths_are_refused():
    for bytes_ in (8, 48, 128):
        with pytest.raises(ValueError, match=f"vectors must have 16, 32 or 64 bytes.*got {bytes_}"):
            kernels.kernels.use_vectors(bytes_)
