"""A layer is the orthogonal convolution that it says."""

import itertools

import pytest
import torch

from geoopt_projunn import LowRankUnitary, nn
from geoopt_projunn.nn.convolutions.channels import channels_to_pixels, pixels_to_channels
from tests._asserts import assert_same_to_rounding, assert_within
from tests._modes import Recorder
from tests.nn._jacobian import assert_singular_values, jacobian, signal, textbook_matrix

KINDS = ("OrthogonalConv", "UnitaryConv")
# Odd, even and unequal axes; each is divided by a stride of 2 where it is doubled.
GRIDS = {1: [(5,), (6,)], 2: [(3, 3), (4, 4), (3, 4)], 3: [(3, 3, 3), (2, 2, 4), (4, 3, 2)]}
CHANNELS = [(2, 2), (2, 3), (3, 2)]
ANY_SIZE = [(d, grid) for d, grids in GRIDS.items() for grid in grids]
PRECISIONS = {"single": 1e-5, "double": 1e-12}


def dtype_of(kind, precision):
    real = {"single": torch.float32, "double": torch.float64}[precision]
    return real.to_complex() if kind == "UnitaryConv" else real


def build(kind, grid, channels, stride=1, precision="double", **options):
    """Make a layer whose output has the size ``grid``, in and out channels after the stride."""
    options = {"init": "haar", "dtype": dtype_of(kind, precision), **options}
    layer = getattr(nn, f"{kind}{len(grid)}d")(
        *channels, tuple(n * stride for n in grid), stride, **options
    )
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("init", ["identity", "haar"])
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS.items())
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_all_singular_values_are_one(kind, stride, precision, tolerance, init):
    for (_, grid), (ins, outs) in itertools.product(ANY_SIZE, CHANNELS):
        channels = (1, 2 ** len(grid) + outs - ins) if stride == 2 else (ins, outs)
        assert_singular_values(build(kind, grid, channels, stride, precision, init=init), tolerance)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("grid", [grid for _, grid in ANY_SIZE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_the_block_circulant_matrix_of_the_textbook(kind, grid, channels):
    layer = build(kind, grid, channels)
    matrix = torch.from_numpy(textbook_matrix(layer))
    if kind == "OrthogonalConv":
        assert_within(matrix.imag, 0.0, 1e-15)
        matrix = matrix.real
    assert_same_to_rounding(jacobian(layer), matrix)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("channels", [(1, 4), (2, 3), (3, 1)])
@pytest.mark.parametrize("grid", [grid for _, grid in ANY_SIZE] + [(1,), (2, 1), (1, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_convolution_is_equal(kind, grid, channels, stride):
    for precision, tolerance in (("single", 1e-5), ("double", 1e-13)):
        layer = build(kind, grid, channels, stride, precision)
        conv = layer.to_conv()
        x = signal(layer)
        assert type(conv) is getattr(torch.nn, f"Conv{len(grid)}d")
        assert_within(conv(x), layer(x), tolerance)


def test_the_exported_convolution_is_equal_to_1e_6_at_a_usual_size():
    layer = build("OrthogonalConv", (16, 16), (16, 16), precision="single")
    x = signal(layer)
    relative = (layer.to_conv()(x) - layer(x)).norm() / layer(x).norm()
    assert relative < 1e-6


def test_the_exported_convolution_is_a_copy_without_bias_if_the_layer_has_none():
    layer = build("OrthogonalConv", (4, 4), (2, 2), bias=False)
    conv = layer.to_conv()
    assert conv.bias is None
    assert layer.bias is None
    before = layer.weight.detach().clone()
    torch.nn.init.zeros_(conv.weight)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [grid for _, grid in ANY_SIZE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoint_is_the_conjugate_transpose(kind, grid, stride):
    for channels in CHANNELS:
        layer = build(kind, grid, channels, stride)
        y = layer(signal(layer))
        assert_same_to_rounding(layer.adjoint(y).flatten(1), y.flatten(1) @ jacobian(layer).conj())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [grid for _, grid in ANY_SIZE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoint_undoes_a_layer_that_preserves_norms(kind, grid, stride):
    for more in (0, 1):
        layer = build(kind, grid, (2, 2 * stride ** len(grid) + more), stride)
        x = signal(layer)
        y = layer(x) - layer.bias.view(-1, *[1] * len(grid))
        assert_same_to_rounding(y.norm(), x.norm())
        assert_same_to_rounding(layer.adjoint(y), x)


@pytest.mark.parametrize("channels", [(2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("grid", [(3,), (4,), (3, 2), (2, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact(kind, grid, channels):
    layer = build(kind, grid, channels)
    x = signal(layer, batch=1).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)
    parts = [value.detach().clone().requires_grad_() for value in values]

    def of(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(of, (x, *parts))
    assert torch.autograd.gradgradcheck(of, (x, *parts))
    assert torch.autograd.gradcheck(layer.adjoint, (layer(x).detach().requires_grad_(),))


def test_gradients_with_a_stride_are_exact():
    layer = build("OrthogonalConv", (2, 3), (1, 3), 2)
    assert torch.autograd.gradcheck(layer, (signal(layer, batch=1).requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_without_a_batch_gives_one_without(kind):
    layer = build(kind, (3, 4), (2, 3))
    x = signal(layer, batch=1)
    assert_same_to_rounding(layer(x[0]), layer(x)[0])
    assert_same_to_rounding(layer.adjoint(layer(x)[0]), layer.adjoint(layer(x))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_identity_channels_are_copied_cut_or_followed_by_zeros(kind):
    for ins, outs in ((3, 3), (3, 2), (3, 4)):
        layer = build(kind, (4, 4), (ins, outs), init="identity", bias=False)
        x = signal(layer)
        y = layer(x)
        shared = min(ins, outs)
        assert_same_to_rounding(y[:, :shared], x[:, :shared])
        assert_within(y[:, shared:].sum(), 0.0, 1e-14)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_stride_moves_pixels_as_torch_does_in_two_dimensions(d):
    x = torch.randn(2, 3, *(4, 6, 8)[:d])
    moved = pixels_to_channels(x, 2)
    assert moved.shape == (2, 3 * 2**d, *(2, 3, 4)[:d])
    if d == 2:
        assert torch.equal(moved, torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(channels_to_pixels(moved, 2), x)


def test_a_circular_shift_of_the_input_shifts_the_output():
    layer = build("OrthogonalConv", (4, 5), (2, 3), 2)
    x = signal(layer)
    shifted = layer(x.roll((2, 4), (2, 3)))
    assert_same_to_rounding(shifted, layer(x).roll((1, 2), (2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_haar_layers_have_independent_matrices_of_either_determinant(kind):
    layer = build(kind, (4, 4), (6, 6))
    weights = layer.weight.detach()
    overlap = (weights[:, None].conj() * weights[None]).sum((-2, -1)) / 6
    off_diagonal = overlap - torch.eye(len(weights))
    assert off_diagonal.abs().max() < 0.8
    if kind == "OrthogonalConv":
        layers = [build(kind, (4, 4), (6, 6)) for _ in range(4)]
        signs = torch.linalg.det(torch.cat([one.weight_real for one in layers])).sign()
        assert signs.unique().tolist() == [-1.0, 1.0]


def test_the_matrices_live_on_the_manifold_that_was_asked_for():
    layer = nn.OrthogonalConv2d(4, 4, 4, k=2, retraction="polar", sketch="lsi")
    manifold = LowRankUnitary(2, retraction="polar", sketch="lsi")
    assert layer.weight.manifold == layer.weight_real.manifold == manifold
    assert layer.weight.shape == (6, 4, 4)
    assert layer.weight_real.shape == (4, 4, 4)
    assert layer.weight.dtype == torch.complex64
    assert layer.weight_real.dtype == torch.float32
    assert nn.UnitaryConv2d(4, 4, 4).weight.shape == (16, 4, 4)


def test_the_default_dtype_is_that_of_torch():
    torch.set_default_dtype(torch.float64)
    try:
        assert nn.OrthogonalConv1d(2, 2, 4).weight.dtype == torch.complex128
        assert nn.OrthogonalConv1d(2, 2, 4).bias.dtype == torch.float64
        assert nn.UnitaryConv1d(2, 2, 4).bias.dtype == torch.complex128
    finally:
        torch.set_default_dtype(torch.float32)


def test_repr_tells_layers_apart():
    layer = nn.OrthogonalConv2d(2, 8, (4, 6), stride=2, bias=False, k=2)
    assert repr(layer) == (
        "OrthogonalConv2d(2, 8, size=(4, 6), stride=2, bias=False, "
        "k=2, retraction=exponential, sketch=tangent, init=identity)"
    )


def test_under_autocast_the_layer_computes_in_its_own_precision():
    layer = build("OrthogonalConv", (4, 4), (4, 4), precision="single")
    x = signal(layer)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    assert_same_to_rounding(y, layer(x.bfloat16().float()))


def test_forward_creates_nothing_of_the_size_of_the_matrices():
    layer = build("OrthogonalConv", (16, 16), (32, 32), precision="single")
    x = signal(layer, batch=1).requires_grad_()
    with Recorder() as recorder:
        layer(x)
    assert recorder.largest < layer.weight.numel() / 8
    assert not recorder.forbidden
