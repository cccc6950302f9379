"""Layers on a GPU: values and gradients are those of a CPU, nothing waits, graphs replay them."""

import warnings

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalRNN,
    UnitaryConv2d,
    UnitaryRNN,
)
from geoopt_projunn.nn.kernels.launching import serve
from tests._gpu import AnotherProcess, no_waiting
from tests._precision_settings import forget, use
from tests.nn._oracles import scattered

pytestmark = pytest.mark.gpu

T, N, INPUTS, HIDDEN = 40, 20, 5, 48
RECURRENT = {
    f"{kind.__name__} {nonlinearity}": (kind, nonlinearity)
    for kind in (OrthogonalRNN, UnitaryRNN, OrthogonalGRU)
    for nonlinearity in ("modrelu", "relu", "tanh")
}
CONVOLUTIONS = {
    "real": (OrthogonalConv2d, (3, 8, (6, 8))),
    "real, of stride 2": (OrthogonalConv2d, (2, 5, (6, 10), 2)),
    "complex": (UnitaryConv2d, (4, 4, (5, 6))),
}
LAYERS = [*RECURRENT, *CONVOLUTIONS]


def build(name):
    """Return a layer on a CPU, in float64 or complex128, and an input for it."""
    if name in CONVOLUTIONS:
        kind, arguments = CONVOLUTIONS[name]
        dtype = torch.complex128 if kind is UnitaryConv2d else torch.float64
        layer = kind(*arguments, dtype=dtype, init="haar")
        return layer, torch.randn(N, layer.in_channels, *layer.size, dtype=dtype)
    kind, nonlinearity = RECURRENT[name]
    dtype = torch.complex128 if kind is UnitaryRNN else torch.float64
    layer = kind(INPUTS, HIDDEN, 2, nonlinearity=nonlinearity, bidirectional=True, dtype=dtype)
    return scattered(layer), torch.randn(T, N, INPUTS, dtype=dtype)


def output(layer, x):
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


def derivatives(layer, x, weight):
    """Return the output, and the gradients of x and of all parameters."""
    x = x.detach().requires_grad_()
    y = output(layer, x)
    loss = (y * weight).abs().square().sum() / 2
    return y.detach(), *torch.autograd.grad(loss, [x, *layer.parameters()])


def on_gpu(layer, x):
    """Return both in single precision."""
    kind = torch.complex64 if x.is_complex() else torch.float32
    return layer.to("cuda", torch.float32), x.to("cuda", kind)


@pytest.fixture(params=[None, ("float32_matmul_precision", "high"), ("general", "tf32")], ids=str)
def _setting(request):
    if request.param is not None:
        use(*request.param)
    yield
    forget()


@pytest.mark.usefixtures("_setting")
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_a_cpu_in_double_precision(name):
    layer, x = build(name)
    weight = torch.rand_like(output(layer, x).real)
    expected = derivatives(layer, x, weight)
    layer, x = on_gpu(layer, x)
    actual = derivatives(layer, x, weight.to("cuda", torch.float32))
    # In TF32, which rounds to 10 bits, the errors would be above 1e-3. A tanh of cuDNN alone is off
    # by 8e-6 in single precision, torch's by 1e-7.
    bound = 1e-4 if name == "OrthogonalRNN tanh" else 2e-5
    for one, other in zip(actual, expected, strict=True):
        assert (one.cpu() - other).abs().max() <= bound * other.abs().max()


@pytest.mark.usefixtures("_setting")
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_recurrences_of_cudnn_are_bit_for_bit_those_of_torch_without_tf32(nonlinearity):
    layer, x = build(f"OrthogonalRNN {nonlinearity}")
    weight = torch.rand_like(output(layer, x)).to("cuda", torch.float32)
    twin = torch.nn.RNN(INPUTS, HIDDEN, 2, nonlinearity, bidirectional=True, dtype=x.dtype)
    twin.load_state_dict(layer.state_dict())
    twin, _ = on_gpu(twin, x)
    layer, x = on_gpu(layer, x)
    actual = derivatives(layer, x, weight)
    forget()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = derivatives(twin, x, weight)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN, OrthogonalGRU])
@pytest.mark.parametrize("hidden", [HIDDEN, 300])
def test_an_empty_batch_has_no_states_and_gradients_of_zero(kind, hidden):
    layer = kind(INPUTS, hidden, nonlinearity="modrelu").cuda()
    x = torch.empty(T, 0, INPUTS, dtype=layer.weight_ih_l0.dtype, device="cuda")
    y = output(layer, x)
    y.abs().sum().backward()
    assert y.shape == (T, 0, hidden)
    assert not layer.weight_hh_l0.grad.any()


def test_kernels_serve_where_triton_is():
    pytest.importorskip("triton")
    assert serve(torch.empty(1, device="cuda")) == (torch.cuda.get_device_capability() >= (8, 0))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_torchs_circular_one(name):
    layer, x = on_gpu(*build(name))
    conv = layer.to_conv()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.no_grad():
        expected = conv(x)
        assert (layer(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


class Training:
    """A layer and its optimizer, on data that stay where they are."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.layer, self.x = on_gpu(*build(name))
        self.target = torch.randn_like(output(self.layer, self.x).detach())
        self.optimizer = ProjUNNRiemannianAdam(self.layer.parameters(), lr=0.001, capturable=True)

    def step(self):
        self.optimizer.zero_grad()
        loss = (output(self.layer, self.x) - self.target).abs().square().mean()
        loss.backward()
        self.optimizer.step()


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_waits_for_nothing(name):
    training = Training(name)
    for _ in range(2):
        training.step()  # which makes state and tables, and compiles
    with no_waiting():
        training.step()


def after_replays(name):
    """Return how far parameters are from those of ordinary steps after as many replayed ones."""
    # Something of an earlier pass is left if torch says so.
    warnings.filterwarnings("error", "The AccumulateGrad node's stream")
    eager, captured = Training(name), Training(name)
    # On a stream of its own, as torch's notes on graphs ask for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(6):
            eager.step()
        for _ in range(3):
            captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # recorded, not run
    for _ in range(3):
        graph.replay()
    both = zip(captured.layer.parameters(), eager.layer.parameters(), strict=True)
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in both)


@pytest.fixture(scope="module")
def apart():
    process = AnotherProcess()
    yield process
    process.close()


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_replays_training_steps(name, apart):
    assert apart(after_replays, name) <= 1e-5
