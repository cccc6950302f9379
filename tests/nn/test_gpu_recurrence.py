"""Recurrences with a modReLU on a GPU: all steps in one launch, or a launch a step."""

import pytest
import torch

from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests.nn._oracles import packed_like, scattered
from tests.nn.test_gpu import derivatives

pytestmark = pytest.mark.gpu

LENGTHS = (24, 40, 40, 1, 7)
# All tiles in registers, some of them, and a launch a step.
SIZES = {
    (OrthogonalRNN, torch.float32): (1, 64, 190, 256, 257),
    (OrthogonalRNN, torch.float64): (96, 192, 193),
    (UnitaryRNN, torch.float32): (128, 192, 193),
    (UnitaryRNN, torch.float64): (64, 128, 129),
}
CASES = [(*case, hidden) for case, sizes in SIZES.items() for hidden in sizes]
# A complex modReLU of small states is ill-conditioned: in single precision torch's operations on a
# CPU are off by 2e-5. In TF32 the errors would be above 1e-3.
BOUNDS = {torch.float32: 2e-5, torch.complex64: 1e-4, torch.float64: 1e-12, torch.complex128: 1e-12}


def build(kind, hidden):
    dtype = torch.complex128 if kind is UnitaryRNN else torch.float64
    layer = scattered(kind(3, hidden, bidirectional=True, init="haar", dtype=dtype))
    return layer, torch.randn(max(LENGTHS), len(LENGTHS), 3, dtype=dtype)


def on_gpu(layer, x, dtype):
    own = dtype.to_complex() if x.is_complex() else dtype
    return layer.to("cuda", dtype), x.to("cuda", own)


def of_packed(layer):
    """Return a function of padded sequences that runs the layer on packed ones."""

    def run(x):
        return layer(packed_like(x, LENGTHS))[0].data

    run.parameters = layer.parameters
    return run


@pytest.mark.parametrize("is_packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(("kind", "dtype", "hidden"), CASES)
def test_values_and_gradients_are_those_of_a_cpu(kind, dtype, hidden, is_packed):
    layer, x = build(kind, hidden)
    call = of_packed(layer) if is_packed else layer
    y = call(x)
    weight = torch.rand_like((y if is_packed else y[0]).real)
    expected = derivatives(call, x, weight)
    _, x = on_gpu(layer, x, dtype)
    weight = weight.to("cuda", dtype)
    actual, again = derivatives(call, x, weight), derivatives(call, x, weight)
    for one, other, exact in zip(actual, again, expected, strict=True):
        assert torch.equal(one, other)
        assert (one.cpu() - exact).abs().max() <= BOUNDS[x.dtype] * exact.abs().max()


@pytest.mark.parametrize(("kind", "hidden"), [(OrthogonalRNN, 190), (UnitaryRNN, 192)])
def test_bits_of_a_sequence_do_not_depend_on_the_others(kind, hidden):
    layer, x = on_gpu(*build(kind, hidden), torch.float32)
    with torch.no_grad():
        states = layer(x)[0]
        x[:, 1:] += 1
        again = layer(x)[0]
    assert torch.equal(states[:, 0], again[:, 0])
    assert not torch.equal(states[:, 1], again[:, 1])
