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
