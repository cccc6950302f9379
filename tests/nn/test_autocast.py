"""Layers under autocast."""

import pytest
import torch

from geoopt_projunn.nn import OrthogonalConv2d, OrthogonalGRU, OrthogonalRNN, UnitaryRNN


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN, OrthogonalGRU])
def test_the_states_stay_in_the_parameters_precision(kind):
    layer = kind(3, 8, 2)
    x = torch.randn(4, 2, 3)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
        assert layer(x.bfloat16())[0].dtype == layer.weight_hh_l0.dtype
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adjoint_is_computed_in_the_precision_of_the_layer(dtype):
    layer, y = OrthogonalConv2d(4, 4, (4, 4), init="haar"), torch.randn(2, 4, 4, 4)
    expected = layer.adjoint(y)
    with torch.autocast("cpu", dtype=dtype):
        actual = layer.adjoint(y)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
