"""Weights of modules that know nothing of manifolds."""

import pytest
import torch
from torch.nn.utils import parametrizations

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.nn import (
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalRNN,
    orthogonality_errors,
    orthogonalize_,
)
from tests._asserts import assert_unitary, assert_within
from tests._matrices import DTYPES, polar_reference


class Holder(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 6), (2, 3, 4, 4)])
def test_it_moves_a_weight_to_the_nearest_unitary_matrix(dtype, size):
    module = Holder(torch.randn(size, dtype=dtype))
    weight, before = module.weight, module.weight.detach().clone()
    assert orthogonalize_(module, "weight", k=2, retraction="polar", sketch="lsi") is weight
    assert module.weight is weight
    assert weight.manifold == LowRankUnitary(2, retraction="polar", sketch="lsi")
    assert_unitary(weight.detach())
    assert_within(weight.detach(), polar_reference(before), 1e-4)
    assert weight.requires_grad
    assert weight.is_leaf


@pytest.mark.parametrize("init", ["henaff", "cayley", "identity", "haar"])
def test_it_starts_at_an_init(init):
    module = Holder(torch.full((6, 6), torch.nan))
    orthogonalize_(module, "weight", init=init)
    assert_unitary(module.weight.detach())
    assert (init == "identity") == torch.equal(module.weight, torch.eye(6))


def test_a_second_call_changes_the_manifold_and_no_bit_of_the_weight():
    module = Holder(torch.randn(6, 6))
    values = orthogonalize_(module, "weight").detach().clone()
    assert orthogonalize_(module, "weight", k=3).manifold == LowRankUnitary(3)
    assert torch.equal(module.weight, values)


def encoder():
    return torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)


MODULES = {
    "rnn": (lambda: torch.nn.RNN(8, 8, 2), "weight_hh_l1"),
    "linear": (lambda: torch.nn.Linear(8, 8), "weight"),
    "bilinear": (lambda: torch.nn.Bilinear(8, 8, 4), "weight"),
    "attention": (lambda: torch.nn.MultiheadAttention(8, 2), "out_proj.weight"),
    "attention, separate": (lambda: torch.nn.MultiheadAttention(8, 2, kdim=4), "q_proj_weight"),
    "encoder": (encoder, "self_attn.out_proj.weight"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_module_trains_on_the_manifold(name):
    make, path = MODULES[name]
    module = make()
    weight = orthogonalize_(module, path)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    x = torch.randn(3, 5, 8)
    arguments = {
        "bilinear": (x, x),
        "attention": (x, x, x),
        "attention, separate": (x, x[..., :4], x),
    }
    before = weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        output = module(*arguments.get(name, (x,)))
        output = output[0] if isinstance(output, tuple) else output
        output.square().sum().backward()
        optimizer.step()
    assert module.get_parameter(path) is weight
    assert not torch.equal(weight, before)
    assert_unitary(weight.detach(), ulps=100)


def test_the_weights_of_a_torch_layer_can_be_taken_over():
    layer = OrthogonalRNN(3, 8, nonlinearity="tanh")
    layer.load_state_dict(torch.nn.RNN(3, 8).state_dict())
    assert orthogonality_errors(layer)["weight_hh_l0"] > 0.1
    orthogonalize_(layer, "weight_hh_l0")
    assert orthogonality_errors(layer)["weight_hh_l0"] < 1e-5


def test_an_optimizer_made_before_holds_it_still():
    module = torch.nn.Linear(8, 8)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    orthogonalize_(module, "weight")
    module(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    assert_unitary(module.weight.detach())


def parametrized():
    return parametrizations.orthogonal(torch.nn.Linear(4, 4))


BAD = {
    "stacked, MultiheadAttention": (
        lambda: torch.nn.MultiheadAttention(8, 2),
        "in_proj_weight",
        {},
        ValueError,
        r"`in_proj_weight` of MultiheadAttention, of shape \(24, 8\), holds 3 mat.*give `blocks=3`",
    ),
    "stacked, LSTM": (
        lambda: torch.nn.LSTM(6, 8),
        "weight_ih_l0",
        {},
        ValueError,
        r"`weight_ih_l0` of LSTM, of shape \(32, 6\), holds 4 matrices, one .*give `blocks=4`",
    ),
    "stacked, in a model": (
        lambda: torch.nn.Sequential(torch.nn.GRUCell(8, 8)),
        "0.weight_hh",
        {},
        ValueError,
        r"`0.weight_hh` of GRUCell, of shape \(24, 8\), holds 3 matrices, .*give `blocks=3`",
    ),
    "gates": (
        lambda: OrthogonalGRU(6, 8, bidirectional=True),
        "weight_gates_l0_reverse",
        {},
        ValueError,
        r"`weight_gates_l0_reverse` of OrthogonalGRU, .* holds 2 matrices, .*give `blocks=2`",
    ),
    "gates of a cell": (
        lambda: OrthogonalGRUCell(6, 8),
        "weight_gates",
        {},
        ValueError,
        r"`weight_gates` of OrthogonalGRUCell, .* holds 2 matrices, .*give `blocks=2`",
    ),
    "blocks that do not divide": (
        lambda: torch.nn.LSTM(8, 8),
        "weight_hh_l0",
        {"blocks": 5},
        ValueError,
        r"it must have shape \(\*, 5 n, p\), because it stacks 5 blocks, got \(32, 8\)",
    ),
    "no blocks": (
        lambda: torch.nn.LSTM(8, 8),
        "weight_hh_l0",
        {"blocks": 0},
        ValueError,
        "`blocks` must be at least 1, got 0; use blocks=1 for one matrix",
    ),
    "rank of a rectangular one": (
        lambda: torch.nn.Linear(8, 6),
        "weight",
        {"k": 5},
        ValueError,
        r"`weight` does not fit: `k` must satisfy 1 <= k <= min\(p, n // 2\) = 4, got 5",
    ),
    "init of a rectangular one": (
        lambda: torch.nn.Linear(8, 6),
        "weight",
        {"init": "henaff"},
        ValueError,
        "`init` must be one of 'nearest', 'identity', 'haar' for a rectangular matrix, got 'henaff",
    ),
    "vector": (
        lambda: torch.nn.Linear(4, 4),
        "bias",
        {},
        ValueError,
        r"`bias` must have shape \(\*, n, p\), got \(4,\), which is no matrix\.",
    ),
    "missing": (
        lambda: torch.nn.Linear(4, 4),
        "wait",
        {},
        AttributeError,
        "Linear has no parameter `wait`. Its parameters are weight, bias.",
    ),
    "none": (
        lambda: torch.nn.Linear(4, 4, bias=False),
        "bias",
        {},
        AttributeError,
        "Linear has no parameter `bias`. Its parameters are weight.",
    ),
    "missing module": (
        lambda: torch.nn.Linear(4, 4),
        "part.weight",
        {},
        AttributeError,
        "has no attribute `part`",
    ),
    "half": (
        lambda: torch.nn.Linear(4, 4, dtype=torch.bfloat16),
        "weight",
        {},
        TypeError,
        "`weight` must have one of the dtypes .*, got torch.bfloat16; half precision",
    ),
    "parametrized": (
        parametrized,
        "weight",
        {},
        TypeError,
        r"computed by a parametrization; remove it .*remove_parametrizations\(module, 'weight'\)",
    ),
    "meta": (
        lambda: torch.nn.Linear(4, 4, device="meta"),
        "weight",
        {},
        ValueError,
        "`weight` must have values, but is on the meta device; call this after `to_empty`",
    ),
    "not finite": (
        lambda: Holder(torch.full((4, 4), torch.inf)),
        "weight",
        {},
        ValueError,
        "`weight` cannot be projected: it must be finite",
    ),
    "lazy": (
        lambda: torch.nn.LazyLinear(4),
        "weight",
        {},
        TypeError,
        "`weight` must be a torch.nn.Parameter or .*, got UninitializedParameter",
    ),
    "init": (
        lambda: torch.nn.Linear(4, 4),
        "weight",
        {"init": "xavier"},
        ValueError,
        "`init` must be one of 'nearest', 'henaff', 'cayley', 'identity', 'haar', got 'xavier'",
    ),
    "k": (
        lambda: torch.nn.Linear(4, 4),
        "weight",
        {"k": 3},
        ValueError,
        "`weight` does not fit: `k` must satisfy .* got 3",
    ),
    "embedding of bounded length": (
        lambda: torch.nn.Sequential(torch.nn.EmbeddingBag(4, 4, max_norm=0.5)),
        "0.weight",
        {},
        ValueError,
        "`0.weight` of EmbeddingBag cannot .* with `max_norm`, which .* got max_norm=0.5; make",
    ),
    "embedding with padding": (
        lambda: torch.nn.Embedding(4, 4, padding_idx=0),
        "weight",
        {},
        ValueError,
        "`weight` of Embedding cannot be .* with `padding_idx`, which .* got padding_idx=0; make",
    ),
    "retraction": (
        lambda: torch.nn.Linear(4, 4),
        "weight",
        {"retraction": "qr"},
        ValueError,
        "`retraction` must be one of",
    ),
}


CONVOLUTIONS = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_kernel_of_a_convolution_is_refused(kind, size):
    # (4, 4, 3, 3) could be taken for sixteen matrices, and four are enough for (4, 4, 1).
    channels = (4,) if kind.startswith("Lazy") else (4, 4)
    module = torch.nn.Sequential(getattr(torch.nn, kind)(*channels, kernel_size=size))
    words = rf"`0.weight` .*is the kernel of a {kind}: .*OrthogonalConv1d, OrthogonalConv2d or Ort"
    with pytest.raises(TypeError, match=words):
        orthogonalize_(module, "0.weight")
    assert not hasattr(module[0].weight, "manifold")


def test_another_weight_of_a_convolution_is_not_its_kernel():
    module = torch.nn.Conv2d(4, 4, 3)
    module.mix = torch.nn.Parameter(torch.randn(4, 4))
    orthogonalize_(module, "mix")
    assert_unitary(module.mix.detach())


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused_and_nothing_changes(case):
    make, name, options, error, words = BAD[case]
    module = make()
    before = {n: (p, type(p)) for n, p in module.named_parameters()}
    values = {
        n: p.detach().clone()
        for n, p in module.named_parameters()
        if type(p) is torch.nn.Parameter and not p.is_meta
    }
    with pytest.raises(error, match=words):
        orthogonalize_(module, name, **options)
    for n, p in module.named_parameters():
        assert p is before[n][0]
        assert type(p) is before[n][1]
        assert n not in values or torch.equal(p, values[n])
