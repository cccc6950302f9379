"""The kernels of modules; test_kernels.py runs this in a process in which Triton interprets."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from geoopt_projunn.backends.triton import repeated
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalConv3d,
    OrthogonalGRU,
    OrthogonalRNN,
    UnitaryRNN,
)
from geoopt_projunn.nn.kernels import frequencies as moving
from geoopt_projunn.nn.kernels import modrelu, recurrence
from geoopt_projunn.nn.recurrences import pointwise, untaped
from tests._asserts import assert_same_to_rounding
from tests._triton import InterpretedAsCompiled, replay_interpreted
from tests.nn._oracles import scattered
from tests.nn.test_costs import Count

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ROWS, N = 11, 30  # more entries than a program takes, and not a multiple


@pytest.fixture
def _step_by_step(monkeypatch):
    """Take recurrences for too large for one launch."""
    monkeypatch.setattr(recurrence.Tiling, "of", lambda *_: None)


@pytest.fixture
def launches(monkeypatch):
    """Count launches, which then do nothing."""
    counts = Counter()

    def launch(kernel, *_, **__):
        counts[kernel.fn.__name__.strip("_")] += 1

    monkeypatch.setattr(modrelu, "Repeated", lambda kernel, *_, **__: partial(launch, kernel))
    monkeypatch.setattr(moving, "launch", launch)
    return counts


def special(dtype):
    """Return arguments in the range of a modReLU, and some at its ends."""
    z = torch.randn(ROWS, N, dtype=dtype)
    large = torch.finfo(dtype).max ** 0.9
    ends = [0.0, -0.0, large, -large, 1 / large, torch.inf, -torch.inf, torch.nan]
    z[0, : len(ends)] = torch.tensor(ends, dtype=dtype)
    if dtype.is_complex:
        z[1, :3] = torch.tensor([complex(torch.nan, 1), complex(1, torch.nan), 1j * large])
    return z, 0.4 * torch.randn(N, dtype=dtype.to_real())


def seeded(number):
    return torch.Generator().manual_seed(number)


def both(z, offset):
    kinds = pointwise.POINTWISE["modrelu", z.is_complex()], pointwise.pointwise_for
    plain, kernels = kinds[0](offset), kinds[1]("modrelu", z, offset)
    assert type(plain) is not type(kernels)
    return plain, kernels


@each_dtype
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of what is not finite
def test_a_modrelu_is_that_of_torchs_operations_also_of_values_at_the_ends(dtype):
    z, offset = special(dtype)
    results = []
    for one in both(z, offset):
        h = z.clone()
        one.forward_(h)
        results.append(h)
    torch.testing.assert_close(results[1], results[0], equal_nan=True)
    assert not results[0][2:].isnan().any()
    assert results[0].isnan().any()


@each_dtype
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_so_are_its_gradients(dtype):
    z, offset = special(dtype)
    plain, kernels = both(z, offset)
    plain.forward_(z)
    results = []
    for one in (plain, kernels):
        one.watch_offset(z)
        grads = [torch.randn(rows, N, generator=seeded(7), dtype=dtype) for rows in (ROWS, 4)]
        for grad in grads:
            one.backward_(grad, z[: len(grad)])
        results.append([*grads, one.offset_gradient()])
    for ours, expected in zip(*results[::-1], strict=True):
        known = expected.isfinite()
        assert 0 < known.count_nonzero() < expected.numel() or not dtype.is_complex
        torch.testing.assert_close(ours[~known], expected[~known], equal_nan=True)
        assert_same_to_rounding(ours[known], expected[known])


class Replayable:
    """An interpreted kernel, of which launches can be replayed with addresses."""

    def __init__(self, kernel):
        self.kernel, self.fn = kernel, kernel.fn

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.kernel[grid](*args, **options)
            return InterpretedAsCompiled(self.kernel, args)

        return launch


@pytest.fixture
def replays(monkeypatch):
    """Let interpreted kernels be replayed; return what was prepared for that."""

    def made(kernel, *args, **options):
        return repeated.Repeated(Replayable(kernel), *args, **options)

    monkeypatch.setattr(modrelu, "Repeated", made)
    return replay_interpreted(monkeypatch, repeated)


@pytest.mark.usefixtures("_step_by_step")
@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN, OrthogonalGRU])
@pytest.mark.parametrize("batch_sizes", [[3] * 5, [4, 2, 2, 1]], ids=str)
@pytest.mark.parametrize("is_replayed", [False, True], ids=["", "replayed"])
def test_a_layer_has_the_gradients_of_the_loop_of_operations(
    kind, batch_sizes, is_replayed, monkeypatch, request
):
    replays = request.getfixturevalue("replays") if is_replayed else None
    dtype = torch.complex128 if kind is UnitaryRNN else torch.float64
    layer = scattered(kind(2, 6, 2, nonlinearity="modrelu", bidirectional=True, dtype=dtype))
    x = torch.randn(sum(batch_sizes), 2, dtype=dtype, requires_grad=True)
    weight = torch.randn(sum(batch_sizes), 12, dtype=dtype)

    def gradients():
        states, last = layer(PackedSequence(x, torch.tensor(batch_sizes)))
        loss = (states.data * weight).real.sum() + last.abs().square().sum()
        return loss, *torch.autograd.grad(loss, [x, *layer.parameters()])

    ours = gradients()
    # Both ways, of two layers and two directions.
    assert replays is None or len(replays) >= 8
    monkeypatch.setattr(untaped, "needs_torch_operations", lambda *_: True)
    for actual, expected in zip(ours, gradients(), strict=True):
        assert_same_to_rounding(actual, expected)


def test_the_candidates_of_a_gated_layer_are_one_launch_each_way(launches):
    layer = OrthogonalGRU(2, 16)
    layer(torch.randn(10, 4, 2))[0].sum().backward()
    assert launches == {"forward_real": 10, "backward_real": 10}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(OrthogonalConv2d, (2, 3, (4, 6), 2)), (OrthogonalConv3d, (2, 2, (2, 3, 4)))],
)
def test_a_convolution_has_the_gradients_of_torchs_operations(kind, arguments, monkeypatch):
    layer = kind(*arguments, dtype=torch.float64, init="haar")
    x = torch.randn(2, layer.in_channels, *layer.size, dtype=torch.float64, requires_grad=True)
    loss_of = torch.randn(2, layer.out_channels, *layer.grid, dtype=torch.float64)

    def derivatives():
        y = layer(x)
        first = torch.autograd.grad(
            (y.square() * loss_of).sum() + layer.adjoint(y).pow(3).sum(),
            [x, *layer.parameters()],
            create_graph=True,
        )
        return y, *first, *torch.autograd.grad(first[0].square().sum(), layer.weight)

    ours = derivatives()
    for module in ("frequencies", "convolutions.full_width"):
        path = f"geoopt_projunn.nn.{module}.needs_torch_operations"
        monkeypatch.setattr(path, lambda *_: True)
    for actual, expected in zip(ours, derivatives(), strict=True):
        assert_same_to_rounding(actual, expected, ulps=100)


@pytest.mark.usefixtures("_step_by_step")
@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_a_time_step_is_a_product_and_a_launch_each_way(kind, launches):
    layer = kind(2, 16)
    counted = []
    for length in (10, 20):
        layer.zero_grad()
        launches.clear()
        with Count() as operations:
            states = layer(torch.randn(length, 4, 2, dtype=layer.weight_ih_l0.dtype))[0]
            states.backward(torch.ones_like(states))
        counted.append(operations.operations + launches)
    name = "complex" if kind is UnitaryRNN else "real"
    grown = counted[1] - counted[0]
    assert grown.pop("addmm_") == 2 * 10
    assert grown.pop(f"forward_{name}") == grown.pop(f"backward_{name}") == 10
    assert not grown


def test_a_convolution_moves_its_frequencies_by_one_launch_at_each_transform(launches):
    layer = OrthogonalConv2d(3, 3, 8, bias=False)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    layer(x)  # which makes the tables
    launches.clear()
    with Count() as forward:
        y = layer(x)
    assert launches == {"gather": 1, "scatter": 1}
    gradient = torch.ones_like(y)
    with Count() as backward:
        y.backward(gradient)
    assert launches == {"gather": 2, "scatter": 2}
    # The transforms, the products, and what copies nothing but a conjugate.
    assert busy(forward) == {"_fft_r2c": 1, "bmm": 2, "_fft_c2r": 1}
    assert busy(backward) == {"_fft_r2c": 1, "bmm": 4, "_fft_c2r": 1, "clone": 1}


def busy(counted):
    """Leave out what runs nothing on a GPU."""
    idle = ("new_empty", "_unsafe_view")
    return {name: n for name, n in counted.operations.items() if name not in idle}
