"""A readout is any real-linear map of complex features."""

import pytest
import torch

from geoopt_projunn.nn import RealReadout, UnitaryRNN
from tests._asserts import assert_within


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_linear_in_both_parts(bias):
    readout = RealReadout(3, 2, bias=bias, dtype=torch.float64)
    h = torch.randn(4, 5, 3, dtype=torch.complex128)
    re, im = readout.weight[:, 0::2], readout.weight[:, 1::2]
    expected = h.real @ re.mT + h.imag @ im.mT + (readout.bias if bias else 0)
    assert_within(readout(h), expected, 1e-12)
    assert readout(h).dtype == torch.float64
    assert (readout.bias is not None) == bias


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_it_takes_conjugates_and_stays_real_in_a_complex_model():
    readout, h = RealReadout(3, 2), torch.randn(4, 3, dtype=torch.complex64)
    assert torch.equal(readout(h.conj()), readout(h.conj().resolve_conj()))
    readout.to(torch.complex128)
    assert readout(h.to(torch.complex128)).dtype == torch.float64


def test_it_closes_a_network_over_complex_states():
    layer, readout = UnitaryRNN(3, 8, batch_first=True), RealReadout(8, 2)
    states, _ = layer(torch.randn(4, 6, 3))
    loss = readout(states).square().mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None for p in (*layer.parameters(), *readout.parameters()))


@pytest.mark.parametrize(
    ("dtype", "right"), [(torch.complex128, "float64"), (torch.int64, "float32")]
)
def test_its_weight_is_real(dtype, right):
    message = rf"`dtype` must be real, got {dtype}; the weight is real, use `dtype=torch\.{right}`"
    with pytest.raises(TypeError, match=message):
        RealReadout(3, 2, dtype=dtype)


def test_another_number_of_features_is_refused():
    message = r"`input` must have 3 features, .* got shape \(4, 5\); .*`in_features=5`"
    with pytest.raises(ValueError, match=message):
        RealReadout(3, 2)(torch.randn(4, 5, dtype=torch.complex64))


def test_it_prints_its_arguments():
    assert str(RealReadout(3, 2)) == "RealReadout(in_features=3, out_features=2, bias=True)"
