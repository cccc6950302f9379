"""Edges of use: hooks, single samples, a removed bias, gradients in place, tiny states."""

import pytest
import torch

from geoopt_projunn.nn import (
    BlockOrthogonalConv2d,
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryConv2d,
    UnitaryRNN,
    UnitaryRNNCell,
    modrelu,
)
from tests._asserts import assert_within

CELLS = [OrthogonalRNNCell, UnitaryRNNCell, OrthogonalGRUCell]
LAYERS = {
    OrthogonalRNN: OrthogonalRNNCell,
    UnitaryRNN: UnitaryRNNCell,
    OrthogonalGRU: OrthogonalGRUCell,
}
WIDE = {OrthogonalRNN: torch.float64, UnitaryRNN: torch.complex128, OrthogonalGRU: torch.float64}


@pytest.mark.parametrize("kind", CELLS)
def test_hooks_and_overridden_methods_of_a_cell_run_once_for_a_single_sample(kind):
    class Residual(kind):
        def forward(self, x, h=None):
            return super().forward(x, h) + 1

    cell, x = Residual(3, 8), torch.randn(3)
    assert_within(cell(x), cell(x[None])[0], 1e-6)
    seen = []
    cell.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    cell(x)
    torch.func.vmap(cell)(x[None])
    assert seen == [(3,)] * 2


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dims", [(1, 2), (2, 1)])
def test_input_and_state_of_a_cell_have_as_many_dimensions(kind, dims):
    x, h = (torch.randn(*(2,) * (d - 1), n) for d, n in zip(dims, (3, 8), strict=True))
    with pytest.raises(ValueError, match=f"as many dimensions .* got {dims[0]}D and {dims[1]}D"):
        kind(3, 8)(x, h)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("removed", ["bias_ih", "bias_hh"])
def test_a_bias_that_is_left_counts(layer, removed):
    whole, cell = layer(3, 8, dtype=WIDE[layer]), LAYERS[layer](3, 8, dtype=WIDE[layer])
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in whole.state_dict().items()})
    setattr(whole, f"{removed}_l0", None)
    setattr(cell, removed, None)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    states, h = whole(x)[0], None
    for t in range(4):
        h = cell(x[t], h)
        assert_within(states[t], h, 1e-12)
    assert_within(torch.func.vmap(lambda one: whole(one)[0])(x[None])[0], states, 1e-12)
    left = getattr(whole, f"bias_{'hh' if removed == 'bias_ih' else 'ih'}_l0")
    of_cell = getattr(cell, f"bias_{'hh' if removed == 'bias_ih' else 'ih'}")
    (grad,) = torch.autograd.grad(states[-1].abs().square().sum(), left)
    (expected,) = torch.autograd.grad(h.abs().square().sum(), of_cell)
    assert_within(grad, expected, 1e-11)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_the_biases_share_no_memory(layer):
    model = layer(3, 8)
    grads = torch.autograd.grad(
        model(torch.randn(5, 2, 3))[0].abs().square().sum(), list(model.parameters())
    )
    assert len({grad.data_ptr() for grad in grads}) == len(grads)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_modrelu_keeps_tiny_numbers(dtype):
    """Down to the least, which are subnormal."""
    info = torch.finfo(dtype)
    sizes = info.smallest_normal * 2.0 ** torch.tensor([-10, -1, 0, 20, 70], dtype=torch.float64)
    z = ((0.6 + 0.8j) * sizes.to(dtype.to_real())).to(dtype).requires_grad_()
    h = modrelu(z, torch.zeros((), dtype=dtype.to_real()))
    assert ((h - z).abs() <= 4 * info.eps * z.abs() + info.smallest_normal * info.eps).all()
    grad = torch.randn(5, dtype=dtype)
    h.backward(grad)
    assert_within(z.grad, grad, 1e-2)


@pytest.mark.parametrize(("dtype", "size"), [(torch.complex64, 1e-28), (torch.complex128, 1e-290)])
def test_a_unitary_layer_keeps_tiny_states_as_its_cell_does(dtype, size):
    layer, cell = (
        UnitaryRNN(3, 4, bias=False, dtype=dtype),
        UnitaryRNNCell(3, 4, False, dtype=dtype),
    )
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = size * torch.randn(1, 2, 3, dtype=dtype.to_real())
    x.requires_grad_()
    states = layer(x)[0][0] / size
    expected = cell(x[0]) / size
    assert_within(states, expected, 1e-5)
    assert states.abs().max() > 1e-2
    grads = [torch.autograd.grad(h.real.sum(), x)[0] * size for h in (states, expected)]
    assert_within(*grads, 1e-4)
    assert grads[0].abs().max() > 1e-2


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh"])
@pytest.mark.parametrize("kind", CELLS)
def test_without_a_state_every_parameter_of_a_cell_gets_a_gradient(kind, nonlinearity):
    """As of torch's cells. DistributedDataParallel waits for all of them."""
    cell = kind(3, 8, nonlinearity=nonlinearity)
    x = torch.randn(2, 3)
    assert_within(cell(x), cell(x, torch.zeros(2, 8, dtype=cell.weight_hh.dtype)), 0)
    cell(x).abs().sum().backward()
    for name, p in cell.named_parameters():
        assert p.grad is not None, name
    assert not cell.weight_hh.grad.any()


CONVOLUTIONS = {
    OrthogonalConv2d: {"size": 4, "stride": 2},
    UnitaryConv2d: {"size": 4},
    BlockOrthogonalConv2d: {"kernel_size": 2},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_of_no_signals_has_no_signals_and_gradients_of_zero(kind):
    """As torch's convolutions."""
    layer = kind(3, 12, **CONVOLUTIONS[kind])
    x = torch.empty(0, 3, 4, 4, dtype=layer.bias.dtype, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, *layer(torch.randn(1, 3, 4, 4, dtype=x.dtype)).shape[1:])
    back = layer.adjoint(y)
    assert back.shape == x.shape
    back.abs().sum().backward()
    for p in (x, *layer.parameters()):
        assert p.grad.shape == p.shape
        assert not p.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64])
@pytest.mark.parametrize("kind", [OrthogonalRNN, OrthogonalGRU, *CELLS[::2]])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_layer_takes_no_other_dtype_for_its_own(kind, dtype):
    """A conversion would lose digits, or imaginary parts, in silence."""
    layer = kind(3, 8)
    x = torch.randn(4, 3)
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    with pytest.raises((RuntimeError, ValueError)):
        traced(x.to(dtype))
