"""What cannot be made orthogonal is refused, and nothing changes."""

import pytest
import torch
from torch.nn.utils import parametrizations

from geoopt_projunn.nn import (
    OrthogonalGRU,
    OrthogonalGRUCell,
    orthogonalize_,
)
from tests._asserts import assert_unitary


def not_finite():
    module = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(module.weight, torch.inf)
    return module


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
    "parameter": (
        lambda: torch.nn.Linear(4, 4),
        torch.nn.Parameter(torch.eye(4)),
        {},
        TypeError,
        "`name` must be a string, got Parameter; pass the parameter's name in",
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
    "not finite": (
        lambda: not_finite(),
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
    words = rf"`0.weight` of {kind} .* is the kernel of a convolution: .*Conv2d or OrthogonalConv3d"
    with pytest.raises(TypeError, match=words):
        orthogonalize_(module, "0.weight")
    assert not hasattr(module[0].weight, "manifold")


@pytest.mark.parametrize(
    ("normalized", "part"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (torch.nn.utils.weight_norm, "weight_v"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_so_is_a_part_from_which_a_kernel_is_computed(normalized, part):
    module = torch.nn.Sequential(normalized(torch.nn.Conv2d(4, 4, 3)))
    with pytest.raises(TypeError, match=rf"`0.{part}` of .*Conv2d .* the kernel of a convolution"):
        orthogonalize_(module, f"0.{part}")


class Product(torch.nn.Module):
    """A kernel as a product of two matrices."""

    def forward(self, left, right):
        return (left @ right).view(4, 4, 3, 3)

    def right_inverse(self, kernel):
        return torch.eye(4), kernel.flatten(1)


def test_a_matrix_of_which_a_kernel_is_a_product_is_not_refused():
    module = torch.nn.Conv2d(4, 4, 3)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Product())
    orthogonalize_(module, "parametrizations.weight.original0")
    assert_unitary(module.parametrizations.weight.original0.detach())


def test_another_weight_of_a_convolution_is_not_its_kernel():
    module = torch.nn.Conv2d(4, 4, 3)
    module.weight_mix = torch.nn.Parameter(torch.randn(4, 4))
    orthogonalize_(module, "weight_mix")
    assert_unitary(module.weight_mix.detach())


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
