"""What cannot work is refused, and nothing changes."""

import copy

import pytest
import torch

from geoopt_projunn import nn
from tests._asserts import assert_bit_equal

BAD_ARGUMENTS = {
    "no inputs": (ValueError, "`in_channels` must be at least 1, got 0", (0, 2, 3), {}),
    "real outputs": (TypeError, "`out_channels` must be an integer, got 2.0", (2, 2.0, 3), {}),
    "no kernel": (ValueError, "`kernel_size` must be at least 1, got 0", (2, 2, 0), {}),
    "one axis": (TypeError, "`kernel_size` must be an integer or a tuple of 2", (2, 2, (3,)), {}),
    "named kernel": (TypeError, "`kernel_size` must be an integer or a tuple", (2, 2, "33"), {}),
    "no stride": (ValueError, "`stride` must be at least 1, got 0", (2, 2, 3, 0), {}),
    "two strides": (TypeError, r"`stride` must be an integer, got \(1, 1\)", (2, 2, 3, (1, 1)), {}),
    "wide stride": (
        ValueError,
        r"`kernel_size` must be at least `stride` = 3 on every axis, got \(3, 2\)",
        (2, 2, (3, 2), 3),
        {},
    ),
    "torch's padding": (TypeError, "`bias` must be True or False, got 1;", (2, 2, 3, 1, 1), {}),
    "init": (
        ValueError,
        "`init` must be one of 'identity', 'haar', got 'henaff'",
        (2, 2, 3),
        {"init": "henaff"},
    ),
    "rank": (ValueError, "`k` must be at least 1, got 0", (2, 2, 3), {"k": 0}),
    "retraction": (ValueError, "`retraction` must be one of", (2, 2, 3), {"retraction": "svd"}),
    "sketch": (ValueError, "`sketch` must be one of", (2, 2, 3), {"sketch": "svd"}),
    "half": (TypeError, "`dtype` of .* must be torch.f", (2, 2, 3), {"dtype": torch.float16}),
    "complex": (TypeError, "`dtype` of .* must be torch.f", (2, 2, 3), {"dtype": torch.complex64}),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_named(case):
    error, message, arguments, options = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        nn.BlockOrthogonalConv2d(*arguments, **options)


BAD_INPUTS = {
    "channels": (
        (1, 4, 6, 6),
        ValueError,
        r"`input` must have shape \(b, 3, height, width\) or \(3, height, width\), got \(1, 4, 6",
    ),
    "no channels": ((6, 6), ValueError, r"`input` must have shape \(b, 3, height, width\)"),
    "volumes": ((1, 3, 6, 6, 6), ValueError, r"`input` must have shape \(b, 3, height, width\)"),
    "no pixels": ((2, 3, 0, 6), ValueError, r"at least `kernel_size` = \(3, 4\), got \(0, 6\)"),
    "too small": (
        (1, 3, 6, 2),
        ValueError,
        r"at least `kernel_size` = \(3, 4\), got \(6, 2\); take a smaller kernel, or Orthogonal",
    ),
    "odd": (
        (1, 3, 6, 5),
        ValueError,
        r"`stride` = 2 must divide the spatial size of `input` on every axis, got \(6, 5\)",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_input_of_another_shape_is_refused(case):
    shape, error, message = BAD_INPUTS[case]
    layer = nn.BlockOrthogonalConv2d(3, 4, (3, 4), 2)
    with pytest.raises(error, match=message):
        layer(torch.zeros(shape))


def test_sequences_are_told_their_own_shape():
    with pytest.raises(ValueError, match=r"shape \(b, 3, length\) or \(3, length\), got \(2, 6\)"):
        nn.BlockOrthogonalConv1d(3, 4, 3)(torch.zeros(2, 6))


def test_the_adjoint_names_its_own_argument():
    layer = nn.BlockOrthogonalConv2d(3, 4, 3, stride=2)
    with pytest.raises(
        ValueError, match=r"`output` must have a spatial size times `stride` = 2 .*got \(1, 2\)"
    ):
        layer.adjoint(torch.zeros(1, 4, 1, 2))
    with pytest.raises(ValueError, match=r"`output` must have shape \(b, 4, height"):
        layer.adjoint(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_an_input_of_another_precision_is_refused(dtype):
    with pytest.raises(TypeError, match=r"must have the dtype of the layer, torch.float32, got"):
        nn.BlockOrthogonalConv2d(3, 4, 3)(torch.zeros((2, 3, 4, 6), dtype=dtype))


def test_a_complex_input_is_refused():
    with pytest.raises(TypeError, match=r"must be real for BlockOrthogonalConv2d, got .*complex64"):
        nn.BlockOrthogonalConv2d(3, 4, 3)(torch.zeros(2, 3, 4, 6, dtype=torch.complex64))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float16, r"`weight` of BlockOrthogonalConv2d .*float16; half precision.*as it was"),
        (torch.complex64, r"`weight` of BlockOrthogonalConv2d must be real, got torch.complex64\."),
    ],
)
def test_a_layer_stays_real_and_precise(dtype, message):
    layer = nn.BlockOrthogonalConv2d(2, 2, 3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(TypeError, match=message):
        layer.to(dtype)
    for name, value in layer.state_dict().items():
        assert_bit_equal(value, before[name])
