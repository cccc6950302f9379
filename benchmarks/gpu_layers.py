"""What the benchmark of a GPU asks about layers: forward and backward pass of each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from unittest.mock import patch

import torch
from gpu_timing import Cases, eager_and_graph

from geoopt_projunn.nn import OrthogonalConv2d, OrthogonalRNN, UnitaryConv2d, UnitaryRNN

Layer = torch.nn.Module


def recurrences(device: str) -> Cases:
    """Time layers of torch and of this package on one sequence."""
    length, batch, hidden = (1000, 128, 190) if device == "cuda" else (5, 2, 8)
    inputs = 10

    def ours(kind: type = OrthogonalRNN, **options: str) -> Callable[[], Layer]:
        return lambda: kind(inputs, hidden, **options)

    def theirs(nonlinearity: str) -> Callable[[], Layer]:
        return lambda: torch.nn.RNN(inputs, hidden, nonlinearity=nonlinearity)

    methods: dict[str, tuple[Callable, Callable[[], Layer]]] = {
        "torch.nn.RNN relu, no TF32": (lambda: _cudnn(tf32=False), theirs("relu")),
        "torch.nn.RNN relu, TF32": (lambda: _cudnn(tf32=True), theirs("relu")),
        "OrthogonalRNN relu": (nullcontext, ours(nonlinearity="relu")),
        "OrthogonalRNN modrelu": (nullcontext, ours()),
        "OrthogonalRNN modrelu, step by step": (_step_by_step, ours()),
        "OrthogonalRNN modrelu, torch's operations": (_torchs_operations, ours()),
        "UnitaryRNN modrelu": (nullcontext, ours(UnitaryRNN)),
        "UnitaryRNN modrelu, step by step": (_step_by_step, ours(UnitaryRNN)),
        "UnitaryRNN modrelu, torch's operations": (_torchs_operations, ours(UnitaryRNN)),
        "torch.nn.RNN tanh, no TF32": (lambda: _cudnn(tf32=False), theirs("tanh")),
        "OrthogonalRNN tanh": (nullcontext, ours(nonlinearity="tanh")),
    }
    x = torch.randn(length, batch, inputs, device=device)
    for name, (context, build) in methods.items():
        yield name, lambda build=build, context=context: _both_passes(build, context, x)
    for tf32 in (False, True):
        for steps in (1, 40):
            label = f"errors of torch.nn.RNN tanh, {steps} steps, {'' if tf32 else 'no '}TF32"
            yield label, lambda steps=steps, tf32=tf32: _error_of_tanh(device, steps, tf32=tf32)


def _error_of_tanh(device: str, steps: int, *, tf32: bool) -> float:
    """Return the largest error of states beside float64; of one step it is that of tanh alone."""
    torch.manual_seed(0)
    layer, x = torch.nn.RNN(8, 8, bias=False).double(), torch.randn(steps, 512, 8).double()
    torch.nn.init.orthogonal_(layer.weight_hh_l0)
    if steps == 1:
        torch.nn.init.eye_(layer.weight_ih_l0)
    with torch.no_grad(), _cudnn(tf32=tf32):
        exact, _ = layer(x)
        states, _ = layer.to(device, torch.float32)(x.to(device, torch.float32))
    return float((states.cpu().double() - exact).abs().max())


def convolutions(device: str) -> Cases:
    """Time layers of torch and of this package on one batch of images."""
    shapes = ((64, 32, 16), (128, 16, 16)) if device == "cuda" else ((4, 4, 2),)
    for channels, size, batch in shapes:

        def ours(kind: type = OrthogonalConv2d, c: int = channels, s: int = size) -> Layer:
            return kind(c, c, s, init="haar")

        def plain(c: int = channels) -> Layer:
            return torch.nn.Conv2d(c, c, 3, padding=1, padding_mode="circular")

        x = torch.randn(batch, channels, size, size, device=device)
        label = f"{channels} channels, {size} x {size}"
        for name, build, context, given in (
            ("Conv2d 3 x 3, no TF32", plain, lambda: _cudnn(tf32=False), x),
            ("OrthogonalConv2d", ours, nullcontext, x),
            ("OrthogonalConv2d, torch's operations", ours, _torchs_operations, x),
            ("UnitaryConv2d", lambda ours=ours: ours(UnitaryConv2d), nullcontext, x + 0j),
        ):
            yield (
                f"{label}: {name}",
                lambda b=build, c=context, given=given: _both_passes(b, c, given),
            )


def _both_passes(
    build: Callable[[], Layer], context: Callable[[], AbstractContextManager], x: torch.Tensor
) -> dict[str, float]:
    layer = build().to(x.device)
    x = x.detach().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(torch.ones_like(y))

    with context():
        return eager_and_graph(run, x.device.type)


def _torchs_operations() -> AbstractContextManager:
    """Leave the Triton kernels of layers out."""
    stack = ExitStack()
    for module in ("recurrences.pointwise", "recurrences.stepping", "frequencies"):
        stack.enter_context(patch(f"geoopt_projunn.nn.{module}.serve", lambda _: False))
    return stack


def _step_by_step() -> AbstractContextManager:
    """Leave out the kernels that take all time steps in one launch."""
    return patch("geoopt_projunn.nn.recurrences.stepping.serve", lambda _: False)


def _cudnn(*, tf32: bool) -> AbstractContextManager:
    # Without `enabled` torch would leave cuDNN out.
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32)
