"""What cannot work is refused, and nothing changes."""

import copy

import pytest
import torch

from geoopt_projunn import nn
from tests._asserts import assert_bit_equal

BAD_ARGUMENTS = {
    "zero size": (ValueError, "`size` must be at least 1, got 0", (2, 2, 0), {}),
    "negative size": (ValueError, "`size` must be at least 1, got -4", (2, 2, (4, -4)), {}),
    "size of one axis": (TypeError, "`size` must be an integer or a tuple of 2", (2, 2, (4,)), {}),
    "real size": (TypeError, "`size` must be an integer or a tuple of 2, got 4.0", (2, 2, 4.0), {}),
    "real size in a tuple": (TypeError, "`size` must be an integer, got 4.5", (2, 2, (4, 4.5)), {}),
    "named size": (TypeError, "`size` must be an integer or a tuple of 2", (2, 2, "44"), {}),
    "no inputs": (ValueError, "`in_channels` must be at least 1, got 0", (0, 2, 4), {}),
    "no outputs": (ValueError, "`out_channels` must be at least 1, got -1", (2, -1, 4), {}),
    "real channels": (TypeError, "`in_channels` must be an integer, got 2.0", (2.0, 2, 4), {}),
    "true channels": (TypeError, "`in_channels` must be an integer, got True", (True, 2, 4), {}),
    "zero stride": (ValueError, "`stride` must be at least 1, got 0", (2, 2, 4, 0), {}),
    "tuple stride": (
        TypeError,
        r"`stride` must be an integer, got \(2, 2\)",
        (2, 2, 4, (2, 2)),
        {},
    ),
    "stride": (
        ValueError,
        r"`stride` must divide `size` = \(4, 6\) .* got 4",
        (2, 2, (4, 6), 4),
        {},
    ),
    "torch's padding": (
        TypeError,
        "`bias` must be True or False, got 0; if it is meant as `padding`, leave it out",
        (2, 2, 4, 1, 0),
        {},
    ),
    "init": (ValueError, "`init` must be one of '.*', got 'normal'", (2, 2, 4), {"init": "normal"}),
    "rank": (
        ValueError,
        "`weight_real` of OrthogonalConv2d does not fit: `k` must satisfy 1 <= k <= n // 2 = 1",
        (2, 2, 4),
        {"k": 2},
    ),
    "one channel": (ValueError, "use k=None for full rank", (1, 1, 4), {"k": 1}),
    "retraction": (ValueError, "`retraction` must be one of", (2, 2, 4), {"retraction": "svd"}),
    "half": (TypeError, "`dtype` of .* must be torch.f", (2, 2, 4), {"dtype": torch.float16}),
    "complex": (TypeError, "`dtype` of .* must be torch.f", (2, 2, 4), {"dtype": torch.complex64}),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_named(case):
    error, message, arguments, options = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        nn.OrthogonalConv2d(*arguments, **options)


def test_a_real_dtype_is_refused_by_a_unitary_layer():
    with pytest.raises(
        TypeError, match=r"must be torch.complex64 or torch.complex128, got torch.f"
    ):
        nn.UnitaryConv1d(2, 2, 4, dtype=torch.float32)


def layer_and_bad(shape, dtype=torch.float32):
    return nn.OrthogonalConv2d(3, 4, (4, 6)), torch.zeros(shape, dtype=dtype)


BAD_INPUTS = {
    "another size": (
        (2, 3, 4, 4),
        ValueError,
        r"spatial size \(4, 6\), got \(4, 4\).*resize or pad",
    ),
    "other channels": (
        (2, 4, 4, 6),
        ValueError,
        r"shape \(b, 3, 4, 6\) or \(3, 4, 6\), got \(2, 4",
    ),
    "no channels": ((4, 6), ValueError, r"must have shape \(b, 3, 4, 6\)"),
    "two batches": ((1, 2, 3, 4, 6), ValueError, r"must have shape \(b, 3, 4, 6\)"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_input_of_another_shape_is_refused(case):
    shape, error, message = BAD_INPUTS[case]
    layer, bad = layer_and_bad(shape)
    with pytest.raises(error, match=message):
        layer(bad)


def test_the_adjoint_names_its_own_argument():
    layer = nn.OrthogonalConv2d(3, 4, (4, 6), stride=2)
    with pytest.raises(ValueError, match=r"`output` must have the spatial size \(2, 3\)"):
        layer.adjoint(torch.zeros(1, 4, 4, 6))


def test_a_complex_input_is_refused_by_a_real_layer_and_the_other_way_round():
    layer, bad = layer_and_bad((2, 3, 4, 6), torch.complex64)
    with pytest.raises(TypeError, match=r"must be real for OrthogonalConv2d.*use UnitaryConv2d"):
        layer(bad)
    with pytest.raises(TypeError, match=r"complex for UnitaryConv2d.*use OrthogonalConv2d"):
        nn.UnitaryConv2d(3, 4, (4, 6))(bad.real)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_an_input_of_another_precision_is_refused(dtype):
    layer, bad = layer_and_bad((2, 3, 4, 6), dtype)
    with pytest.raises(TypeError, match=r"must have the dtype of the layer, torch.float32, got"):
        layer(bad)


CONVERSIONS = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.to(torch.bfloat16),
    "type": lambda layer: layer.type(torch.float16),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("kind", [nn.OrthogonalConv2d, nn.UnitaryConv2d])
def test_half_precision_is_refused_before_anything_changes(kind, conversion):
    layer = kind(2, 2, 4, init="haar")
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(TypeError, match=r"got torch.b?float16; half precision.*as it was"):
        CONVERSIONS[conversion](layer)
    for name, value in layer.state_dict().items():
        assert_bit_equal(value, before[name])


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_real_layer_does_not_become_complex():
    layer = nn.OrthogonalConv2d(2, 2, 4)
    with pytest.raises(
        TypeError, match=r"`weight_real` of OrthogonalConv2d must be real, got torch.complex64"
    ):
        layer.to(torch.complex64)
    assert layer.weight_real.dtype == torch.float32
