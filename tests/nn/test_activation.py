"""modReLU moves the modulus and keeps the phase."""

import warnings

import pytest
import torch

from geoopt_projunn.nn import ModReLU, modrelu
from tests._asserts import assert_same_to_rounding
from tests._matrices import DTYPES
from tests.nn._oracles import KINDS, textbook_modrelu, wide


def inputs(kind):
    z = torch.randn(4, 5, dtype=wide(kind), requires_grad=True)
    offset = torch.linspace(-0.8, 0.8, 5, dtype=torch.float64, requires_grad=True)
    return z, offset


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_textbooks_formula(dtype):
    z, offset = (
        torch.randn(100, 5, dtype=dtype),
        torch.linspace(-0.8, 0.8, 5, dtype=dtype.to_real()),
    )
    h = modrelu(z, offset)
    assert_same_to_rounding(h, textbook_modrelu(z, offset))
    assert h.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_can_be_scripted(dtype):
    module, z = ModReLU(5, dtype=dtype.to_real()), torch.randn(3, 5, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module)
    assert torch.equal(scripted(z), module(z))


@pytest.mark.parametrize("shape", [(2, 1), (5, 9), ()])
def test_a_module_takes_its_number_of_features(shape):
    with pytest.raises(ValueError, match=r"`z` must have 8 features, .* got torch.Size\("):
        ModReLU(8)(torch.randn(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero_with_zero_gradient(kind):
    z, offset = inputs(kind)
    z = torch.zeros_like(z, requires_grad=True)
    h = modrelu(z, offset)
    h.abs().square().sum().backward()
    assert not h.any()
    assert not z.grad.any()
    assert not offset.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_has_zero_second_derivatives(kind):
    z, offset = torch.zeros(4, 5, dtype=wide(kind), requires_grad=True), inputs(kind)[1]
    loss = (modrelu(z, offset) - 1).abs().square().sum()
    first = torch.autograd.grad(loss, (z, offset), create_graph=True)
    total = sum((g - 1).abs().square().sum() for g in first)
    assert not any(g.any() for g in torch.autograd.grad(total, (z, offset)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_offset_it_is_the_identity(kind):
    z, _ = inputs(kind)
    assert_same_to_rounding(ModReLU(5, dtype=torch.float64)(z), z)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind):
    assert torch.autograd.gradcheck(modrelu, inputs(kind))
    assert torch.autograd.gradgradcheck(modrelu, inputs(kind))


def test_the_module_holds_a_real_offset_of_zeros():
    module = ModReLU(5)
    assert torch.equal(module.offset, torch.zeros(5))
    module.offset.data.fill_(1)
    module.reset_parameters()
    assert not module.offset.any()
    assert module.to(torch.float64).offset.dtype == torch.float64
    assert module.bfloat16().offset.dtype == torch.bfloat16
    assert repr(module) == "ModReLU(5)"
