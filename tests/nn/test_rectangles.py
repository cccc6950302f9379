"""Weights that are rectangular or hold several matrices, and the linear layer that is either."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    nn,
)
from tests._asserts import assert_unitary, assert_within

# A module, its weight, how many matrices that holds, and on which manifold each is.
CASES = {
    "tall": (lambda: torch.nn.Linear(6, 16), "weight", 1, LowRankStiefel),
    "wide": (lambda: torch.nn.Linear(16, 6), "weight", 1, LowRankStiefel),
    "embedding": (lambda: torch.nn.Embedding(16, 6), "weight", 1, LowRankStiefel),
    "inputs of an RNN": (lambda: torch.nn.RNN(6, 16), "weight_ih_l0", 1, LowRankStiefel),
    "LSTM": (lambda: torch.nn.LSTM(6, 8), "weight_hh_l0", 4, LowRankUnitary),
    "LSTM, inputs": (lambda: torch.nn.LSTM(6, 8), "weight_ih_l0", 4, LowRankStiefel),
    "LSTMCell": (lambda: torch.nn.LSTMCell(6, 8), "weight_hh", 4, LowRankUnitary),
    "GRU": (lambda: torch.nn.GRU(6, 8, 2), "weight_hh_l1", 3, LowRankUnitary),
    "GRUCell": (lambda: torch.nn.GRUCell(12, 8), "weight_ih", 3, LowRankStiefel),
    "attention": (lambda: torch.nn.MultiheadAttention(8, 2), "in_proj_weight", 3, LowRankUnitary),
}


def run(module):
    if isinstance(module, torch.nn.Embedding):
        return module(torch.arange(5))
    size = getattr(module, "in_features", getattr(module, "input_size", 8))
    x = torch.randn(5, 3, size)
    if isinstance(module, torch.nn.RNNCellBase):
        x = x[0]
    output = module(x, x, x) if isinstance(module, torch.nn.MultiheadAttention) else module(x)
    while isinstance(output, tuple):
        output = output[0]
    return output


def treated(name, **options):
    make, leaf, blocks, _ = CASES[name]
    module = make()
    nn.orthogonalize_(module, leaf, blocks=None if blocks == 1 else blocks, **options)
    return module, getattr(module, leaf)


@pytest.mark.parametrize("name", CASES)
def test_every_block_moves_to_the_nearest_point_and_stays_there_in_training(name):
    make, leaf, blocks, kind = CASES[name]
    module = make()
    weight, before = getattr(module, leaf), getattr(module, leaf).detach().clone()
    assert nn.orthogonalize_(module, leaf, k=2, blocks=None if blocks == 1 else blocks) is weight
    assert weight.manifold == kind(2, blocks=blocks)
    for one, other in zip(weight.chunk(blocks), before.chunk(blocks), strict=True):
        assert_within(one.detach(), polar_by_svd(other), 1e-5)
    start = weight.detach().clone()
    optimizer = ProjUNNRiemannianAdam(module.named_parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        run(module).square().sum().backward()
        optimizer.step()
    for one, other in zip(weight.chunk(blocks), start.chunk(blocks), strict=True):
        assert not torch.equal(one, other)
    for one in weight.detach().chunk(blocks):
        assert_unitary(one if one.shape[0] >= one.shape[1] else one.mT, ulps=40)
    assert nn.orthogonality_errors(module)[leaf] < 1e-5


def polar_by_svd(a):
    u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return (u @ vh).float()


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_are_those_of_torch(name):
    make, leaf, _, _ = CASES[name]
    module, weight = treated(name)
    plain = make()
    plain.load_state_dict(module.state_dict())
    assert_within(getattr(plain, leaf), weight, 0)
    torch.manual_seed(0)
    expected = run(plain)
    torch.manual_seed(0)
    assert_within(run(module), expected, 0)
    module.load_state_dict(make().state_dict(), assign=True)
    assert getattr(module, leaf).manifold == weight.manifold
    assert nn.orthogonality_errors(module)[leaf] > 1e-2
    assert nn.orthogonality_errors(nn.project_(module), exact=True)[leaf] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_copies_and_conversions_keep_the_manifold(name):
    module, weight = treated(name, k=1, retraction="cayley")
    leaf = CASES[name][1]
    for other in (copy.deepcopy(module), copy.deepcopy(module).double(), module.to("meta")):
        assert getattr(other, leaf).manifold == weight.manifold


@pytest.mark.parametrize("init", ["identity", "haar", "henaff"])
def test_blocks_of_squares_take_every_init(init):
    _, weight = treated("LSTM", init=init)
    first, *others = weight.detach().chunk(4)
    for one in (first, *others):
        assert_unitary(one)
        assert torch.equal(one, first) == (init == "identity" or one is first)


def test_options_that_are_not_given_stay():
    module, weight = treated("LSTM, inputs", k=2, sketch="lsi")
    values = weight.detach().clone()
    nn.orthogonalize_(module, "weight_ih_l0", retraction="polar")
    assert weight.manifold == LowRankStiefel(2, sketch="lsi", retraction="polar", blocks=4)
    nn.orthogonalize_(module, "weight_ih_l0", blocks=1)
    assert weight.manifold == LowRankStiefel(2, sketch="lsi", retraction="polar")
    # Four blocks of orthonormal columns are one tall matrix of columns of length two.
    assert_within(weight.detach(), values / 2, 1e-6)


def test_a_square_weight_on_a_stiefel_manifold_stays_on_it():
    module = torch.nn.Linear(8, 8)
    nn.orthogonalize_(module, "weight")
    module.weight.manifold = LowRankStiefel(3)
    assert nn.orthogonalize_(module, "weight", k=2).manifold == LowRankStiefel(2)


# -- the layer -----------------------------------------------------------------------------

SIZES = [(6, 16), (16, 6), (8, 8)]
sizes = pytest.mark.parametrize(("inputs", "outputs"), SIZES)


@sizes
def test_the_layer_is_torchs_with_the_same_state(inputs, outputs):
    for bias in (True, False):
        layer = nn.OrthogonalLinear(inputs, outputs, bias, k=2)
        plain = torch.nn.Linear(inputs, outputs, bias)
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(3, 4, inputs)
        assert_within(layer(x), plain(x), 0)
        assert isinstance(layer, torch.nn.Linear)
        assert list(layer.state_dict()) == list(plain.state_dict())


@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_norms_or_those_of_a_part(inputs, outputs, dtype):
    layer = nn.OrthogonalLinear(inputs, outputs, k=2, dtype=dtype)
    optimizer = ProjUNNRiemannianSGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.randn(9, inputs, dtype=dtype)).pow(4).sum().backward()
        optimizer.step()
    values = torch.linalg.svdvals(layer.weight.detach().double())
    assert_within(values, 1.0, 20 * torch.finfo(dtype).eps + 1e-13)
    kind = LowRankUnitary if inputs == outputs else LowRankStiefel
    assert layer.weight.manifold == kind(2)


def test_it_starts_at_an_init_and_again():
    layer = nn.OrthogonalLinear(6, 16, init="identity")
    assert torch.equal(layer.weight, torch.eye(16, 6))
    assert "k=6, retraction=exponential, sketch=tangent, init=identity" in repr(layer)
    haar = nn.OrthogonalLinear(8, 8)
    weight, before = haar.weight, haar.weight.detach().clone()
    haar.reset_parameters()
    assert haar.weight is weight
    assert not torch.equal(weight, before)
    assert haar.bias.abs().max() <= 8**-0.5


LAYER_ERRORS = {
    "k": (
        lambda: nn.OrthogonalLinear(8, 6, k=5),
        ValueError,
        r"`weight` of OrthogonalLinear does not fit: `k` must satisfy .* = 4, got 5",
    ),
    "k of one row": (
        lambda: nn.OrthogonalLinear(1, 1, k=1),
        ValueError,
        r"`k` must satisfy 1 <= k <= n // 2 = 0, got 1; use k=None",
    ),
    "size": (
        lambda: nn.OrthogonalLinear(0, 6),
        ValueError,
        r"`in_features` must be at least 1, got 0",
    ),
    "dtype": (
        lambda: nn.OrthogonalLinear(8, 6, dtype=torch.complex64),
        TypeError,
        "`dtype` of OrthogonalLinear must be torch.float32 or torch.float64, got torch.complex64",
    ),
    "init": (
        lambda: nn.OrthogonalLinear(8, 6, init="cayley"),
        ValueError,
        "`init` must be one of 'identity', 'haar' for a rectangular matrix, got 'cayley'",
    ),
    "half": (
        lambda: nn.OrthogonalLinear(8, 6).half(),
        TypeError,
        "`weight` of OrthogonalLinear does not fit: .*half precision",
    ),
}


@pytest.mark.parametrize("case", LAYER_ERRORS)
def test_errors_of_the_layer(case):
    call, error, words = LAYER_ERRORS[case]
    with pytest.raises(error, match=words):
        call()


def test_a_rectangle_of_another_shape_does_not_take_its_place():
    layer = nn.OrthogonalLinear(8, 4, k=2)
    words = r"`weight` of OrthogonalLinear .* must have shape \(4, 8\), got \(5, 3\); for another"
    with pytest.raises(ValueError, match=words):
        layer.weight = torch.nn.Parameter(torch.ones(5, 3))
    assert layer.weight.shape == (4, 8)
    assert isinstance(layer.weight, geoopt.ManifoldParameter)
    other = geoopt.ManifoldParameter(LowRankStiefel(k=1).random(5, 3))
    layer.weight = other
    assert layer.weight is other


def test_what_was_offloaded_may_come_back():
    layer = nn.OrthogonalLinear(8, 4, k=2)
    value = layer.weight.detach().clone()
    for put in (setattr, lambda m, name, p: m._parameters.update({name: p})):
        layer.weight.data = torch.empty(0)
        put(layer, "weight", torch.nn.Parameter(value.as_subclass(torch.Tensor)))
        assert isinstance(layer.weight, geoopt.ManifoldParameter)
        assert layer.weight.shape == (4, 8)
