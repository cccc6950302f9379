"""A small kernel is orthogonal, on signals of every size, and is the product that it says."""

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankStiefel, LowRankUnitary, nn
from geoopt_projunn.nn.convolutions.channels import pixels_to_channels
from geoopt_projunn.nn.convolutions.circular import fold, pad, paddings
from tests._asserts import assert_same_to_rounding, assert_within
from tests._modes import Recorder
from tests.nn._jacobian import jacobian

# Isometries and their transposes, odd and even, one channel, more outputs than all pixels need.
CHANNELS = [(1, 1), (2, 2), (5, 5), (3, 4), (4, 3), (1, 5), (2, 9), (3, 13)]
SIZES = {1: [(6,), (12,)], 2: [(4, 4), (6, 4)]}
KERNELS = {1: [1, 2, 3, 5], 2: [1, 3, 4, (2, 3), (4, 2)]}
STRIDES = (1, 2)


def build(dims, channels, kernel_size, stride=1, **options):
    options = {"dtype": torch.float64, **options}
    layer = getattr(nn, f"BlockOrthogonalConv{dims}d")(*channels, kernel_size, stride, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def layers(**options):
    for dims, stride in itertools.product(KERNELS, STRIDES):
        for channels, kernel_size in itertools.product(CHANNELS, KERNELS[dims]):
            least = kernel_size if isinstance(kernel_size, int) else min(kernel_size)
            if least >= stride:
                yield build(dims, channels, kernel_size, stride, **options)


def signal(layer, size, batch=2):
    return torch.randn(batch, layer.in_channels, *size, dtype=layer.weight.dtype)


def sizes(layer):
    return SIZES[len(layer.kernel_size)]


@pytest.mark.parametrize("init", ["haar", "identity"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str
)
def test_all_singular_values_are_one_at_every_size(dtype, tolerance, init):
    for layer in layers(init=init, dtype=dtype):
        for size in sizes(layer):
            assert_within(torch.linalg.svdvals(jacobian(layer, size)), 1.0, tolerance)


def test_the_layer_is_the_chain_of_its_factors():
    for layer in layers(bias=False):
        size = sizes(layer)[0]
        x = signal(layer, size)
        y = torch.zeros(2, layer.channels, *size, dtype=x.dtype)
        y[:, : layer.in_channels] = x
        counts = [n - layer.stride for n in layer.kernel_size]
        order = [a for i in range(max(counts)) for a, count in enumerate(counts) if i < count]
        factors = (
            [] if layer.projectors is None else list(zip(layer.projectors, order, strict=True))
        )
        for n, axis in reversed(factors):
            projected = torch.einsum("ij,bj...->bi...", n @ n.T, y)
            y = y - projected + projected.roll(-1, 2 + axis)
        before = [
            (k - 1) // 2 if layer.stride == 1 else (k - layer.stride + 1) // 2
            for k in layer.kernel_size
        ]
        if factors:
            y = y.roll(before, tuple(range(2, y.dim())))
        y = torch.einsum("ij,bj...->bi...", layer.weight, pixels_to_channels(y, layer.stride))
        assert_same_to_rounding(layer(x), y)


def test_the_exported_convolution_is_equal():
    for layer in layers():
        conv = layer.to_conv()
        assert type(conv) is getattr(torch.nn, f"Conv{len(layer.kernel_size)}d")
        assert conv.kernel_size == layer.kernel_size
        assert conv.padding_mode == "circular"
        for size in sizes(layer):
            x = signal(layer, size)
            assert_same_to_rounding(conv(x), layer(x))


def test_the_exported_convolution_is_a_copy():
    layer = build(2, (2, 4), 3, bias=False).eval()
    conv = layer.to_conv()
    assert conv.bias is None
    x = signal(layer, (4, 4))
    before = layer(x)
    torch.nn.init.zeros_(conv.weight)
    assert torch.equal(layer(x), before)


def test_the_adjoint_is_the_transpose():
    for layer in layers():
        for size in sizes(layer):
            y = layer(signal(layer, size))
            back = layer.adjoint(y)
            assert back.shape == (2, layer.in_channels, *size)
            assert_same_to_rounding(back.flatten(1), y.flatten(1) @ jacobian(layer, size))


def test_the_adjoint_undoes_a_layer_that_preserves_norms():
    for layer in layers(bias=False):
        if layer.in_channels * layer.stride ** len(layer.kernel_size) <= layer.out_channels:
            x = signal(layer, sizes(layer)[1])
            y = layer(x)
            assert_same_to_rounding(y.norm(), x.norm())
            assert_same_to_rounding(layer.adjoint(y), x)


@pytest.mark.parametrize(
    ("kernel_size", "stride"), [(n, s) for n in (1, 2, 3, 4, 5, 7) for s in (1, 2, 3) if n >= s]
)
def test_folding_is_the_transpose_of_padding(kernel_size, stride):
    amounts = paddings((kernel_size,), stride)
    matrix = pad(torch.eye(12).view(12, 1, 12), amounts).flatten(1)
    length = 12 + kernel_size - stride
    assert torch.equal(fold(torch.eye(length).view(length, 1, -1), amounts).flatten(1).T, matrix)
    if stride == 1:
        before = (kernel_size - 1) // 2
        expected = (torch.arange(length) - before) % 12
        assert torch.equal(matrix.argmax(0), expected)


@pytest.mark.parametrize(("channels", "kernel_size", "stride"), [((2, 2), 3, 1), ((1, 9), 3, 2)])
def test_gradients_are_exact(channels, kernel_size, stride):
    layer = build(2, channels, kernel_size, stride)
    x = signal(layer, (4, 4), batch=1).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)
    parts = [value.detach().clone().requires_grad_() for value in values]

    def of(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(of, (x, *parts))
    assert torch.autograd.gradcheck(layer.adjoint, (layer(x).detach().requires_grad_(),))


def test_second_derivatives_are_exact_from_either_end():
    for channels in ((1, 3), (3, 2)):
        layer = build(1, channels, 3, bias=False)
        parts = [p.detach().clone().requires_grad_() for p in (layer.weight, layer.projectors)]

        def of(x, weight, projectors, layer=layer):
            parameters = {"weight": weight, "projectors": projectors}
            return torch.func.functional_call(layer, parameters, x)

        x = signal(layer, (3,), batch=1).requires_grad_()
        assert torch.autograd.gradgradcheck(of, (x, *parts))


@pytest.mark.parametrize("stride", [1, 2])
def test_from_the_identity_channels_are_copied(stride):
    inner = 4
    for kernel_size in (stride, stride + 2, (stride + 4, stride + 2)):
        layer = build(2, (inner, inner * stride**2), kernel_size, stride, init="identity")
        x = signal(layer, (8, 8))
        moved = pixels_to_channels(x, stride) + layer.bias.view(-1, 1, 1)
        assert_same_to_rounding(layer(x), moved)


@pytest.mark.parametrize(("channels", "kernel_size"), [(4, 2), (4, 4), (5, 3), (3, 5), (1, 4)])
def test_from_the_identity_channels_are_a_pixel_off_where_halves_do_not_fit(channels, kernel_size):
    layer = build(1, (channels, channels), kernel_size, init="identity", bias=False)
    x = signal(layer, (9,))
    shifted = torch.stack([x.roll(by, -1) for by in (-1, 0, 1)])
    assert (layer(x) - shifted).abs().amax((1, 3)).amin(0).max() < 1e-14


def test_one_channel_needs_no_projectors():
    layer = nn.BlockOrthogonalConv2d(1, 1, 3)
    assert layer.projectors is None
    assert layer.weight.manifold.rank(layer.weight) is None
    assert nn.BlockOrthogonalConv2d(1, 1, 3, k=2).weight.manifold.k is None
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert nn.BlockOrthogonalConv2d(4, 16, 2, stride=2).projectors is None


def test_the_rank_is_cut_to_what_each_parameter_allows():
    layer = nn.BlockOrthogonalConv2d(6, 9, 3, k=4, retraction="polar", sketch="lsi")
    assert layer.weight.shape == (9, 9)
    assert layer.projectors.shape == (4, 9, 4)
    options = {"retraction": "polar", "sketch": "lsi"}
    assert layer.weight.manifold == LowRankUnitary(4, **options)
    assert layer.projectors.manifold == LowRankStiefel(4, **options)
    layer = nn.BlockOrthogonalConv2d(3, 2, (2, 4), k=9)
    assert layer.weight.shape == (2, 3)
    assert layer.weight.manifold == layer.projectors.manifold == LowRankStiefel(1)
    assert layer.projectors.shape == (4, 3, 1)
    full = nn.BlockOrthogonalConv2d(4, 4, 3, k=None)
    assert full.weight.manifold == LowRankUnitary(None)
    assert full.projectors.manifold == LowRankStiefel(None)


def test_a_signal_without_a_batch_gives_one_without():
    layer = build(2, (2, 3), 3)
    x = signal(layer, (3, 4), batch=1)
    assert_same_to_rounding(layer(x[0]), layer(x)[0])
    assert_same_to_rounding(layer.adjoint(layer(x)[0]), layer.adjoint(layer(x))[0])


def test_repr_tells_layers_apart():
    layer = nn.BlockOrthogonalConv2d(2, 8, (4, 2), stride=2, bias=False, k=2)
    assert repr(layer) == (
        "BlockOrthogonalConv2d(2, 8, kernel_size=(4, 2), stride=2, bias=False, "
        "k=2, retraction=exponential, sketch=tangent, init=haar)"
    )


def test_random_layers_are_drawn_independently():
    torch.manual_seed(3)
    layer = nn.BlockOrthogonalConv2d(16, 16, 3)
    n = layer.projectors.detach()
    overlaps = (n[:, None].mT @ n[None]).square().sum((-2, -1)) / 8
    assert (overlaps - torch.eye(4) * 0.5 - 0.5).abs().max() < 0.1
    signs = [torch.linalg.det(nn.BlockOrthogonalConv1d(3, 3, 1).weight).sign() for _ in range(20)]
    assert {int(sign) for sign in signs} == {-1, 1}


def test_under_autocast_the_kernel_is_made_in_full_precision():
    layer = build(2, (8, 8), 3, dtype=torch.float32)
    x = signal(layer, (6, 6))
    conv = layer.to_conv()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_to_rounding(layer.kernel(), conv.weight)
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert_within(y.float(), conv(x).float(), 2 * torch.finfo(torch.bfloat16).eps)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("channels", "cost"),
    [
        # 4cr flops for the rows of 1, 2, 4 and 6 taps; from the right, one more product with R.
        ((64, 64), 13 * 64 * 4 * 64 * 32),
        ((32, 64), 13 * 32 * 4 * 64 * 32 + 9 * 2 * 32 * 64 * 64),
        ((64, 32), 13 * 32 * 4 * 64 * 32),
    ],
)
def test_a_kernel_costs_the_smaller_end(channels, cost):
    layer = nn.BlockOrthogonalConv2d(*channels, 3, device="meta")
    with FlopCounterMode(display=False) as counter:
        layer.kernel()
    assert counter.get_total_flops() == cost


def test_nothing_is_orthogonalized_in_forward():
    layer = nn.BlockOrthogonalConv2d(8, 8, 3)
    with Recorder() as recorder:
        layer(torch.randn(1, 8, 4, 4)).sum().backward()
    assert not recorder.forbidden
    assert not any("linalg" in name or "inverse" in name for name in recorder.operations)
    assert recorder.largest <= 9 * 8 * 8


def test_orthogonium_finds_the_same_singular_values():
    module = pytest.importorskip("orthogonium.layers.conv.AOC.fast_block_ortho_conv")
    bound = pytest.importorskip("orthogonium.layers.conv.singular_values").get_conv_sv
    for channels, kernel_size in itertools.product([(8, 8), (8, 16), (16, 8)], (1, 3, 5)):
        conv = build(2, channels, kernel_size, dtype=torch.float32).to_conv()
        kernel = conv.weight.detach()[None].numpy()
        smallest, largest, _ = module.conv_singular_values_numpy(kernel, (8, 8))
        assert 1 - 1e-5 < smallest <= largest < 1 + 1e-5
        lipschitz, rank = bound(conv, n_iter=6, imsize=8)
        # An upper bound, of which six iterations leave the 64th root of the rank at most.
        assert 1 - 1e-5 < float(lipschitz) < min(channels) ** (1 / 64) + 1e-5
        # ‖K‖² / (σ² min(in, out)): as large as a kernel of its norm can be.
        assert math.isclose(float(rank) * float(lipschitz) ** 2, 1.0, rel_tol=1e-5)
