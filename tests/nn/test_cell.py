"""A cell is one step of its layer."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, OrthogonalRNNCell, UnitaryRNN, UnitaryRNNCell
from tests._asserts import assert_unitary, assert_within
from tests.nn._oracles import KINDS, scattered, wide

CELLS = {"real": OrthogonalRNNCell, "complex": UnitaryRNNCell}
LAYERS = {"real": OrthogonalRNN, "complex": UnitaryRNN}
NONLINEARITIES = ("modrelu", "relu", "tanh")


def make(kind, **options):
    return scattered(CELLS[kind](3, 6, dtype=wide(kind), init="haar", **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_loop_of_cells_is_the_layer(kind, nonlinearity, bias):
    cell = make(kind, nonlinearity=nonlinearity, bias=bias)
    layer = LAYERS[kind](3, 6, nonlinearity=nonlinearity, bias=bias, dtype=wide(kind))
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x = torch.randn(4, 2, 3, dtype=wide(kind))
    states, last = layer(x)
    h = None
    for t in range(4):
        h = cell(x[t], h)
        assert_within(h, states[t], 1e-12)
    states.abs().square().sum().backward()
    weights = [p.grad for p in layer.parameters()]
    h, total = None, 0
    for t in range(4):
        h = cell(x[t], h)
        total = total + h.abs().square().sum()
    total.backward()
    for p, expected in zip(cell.parameters(), weights, strict=True):
        assert_within(p.grad, expected, 1e-10)
    assert torch.equal(cell(x[0, 0], last[0, 0]), cell(x[0, :1], last[0, :1])[0])


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_cell(nonlinearity, bias):
    cell = make("real", nonlinearity=nonlinearity, bias=bias)
    theirs = torch.nn.RNNCell(3, 6, bias, nonlinearity, dtype=torch.float64)
    theirs.load_state_dict(cell.state_dict())
    x, h = torch.randn(2, 3).double(), torch.randn(2, 6).double()
    assert torch.equal(cell(x, h), theirs(x, h))
    assert torch.equal(cell(x), theirs(x))
    assert torch.equal(cell(x[0], h[0]), theirs(x[0], h[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_first_and_second_derivatives(kind, nonlinearity):
    cell = make(kind, nonlinearity=nonlinearity)
    x = torch.randn(2, 3, dtype=wide(kind), requires_grad=True)
    h = torch.randn(2, 6, dtype=wide(kind), requires_grad=True)
    assert torch.autograd.gradcheck(cell, (x, h))
    assert torch.autograd.gradgradcheck(cell, (x, h))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters(kind):
    cell = make(kind, k=2, retraction="cayley", sketch="column")
    theirs = torch.nn.RNNCell(3, 6).state_dict()
    shapes = {name: p.shape for name, p in cell.state_dict().items()}
    assert shapes.pop("offset") == (6,)
    assert shapes == {name: p.shape for name, p in theirs.items()}
    assert cell.weight_hh.manifold == LowRankUnitary(2, retraction="cayley", sketch="column")
    assert_unitary(cell.weight_hh.detach())
    assert "offset" not in CELLS[kind](3, 6, nonlinearity="relu").state_dict()


def test_real_input_of_a_unitary_cell():
    cell = make("complex")
    x, h = torch.randn(2, 3).double(), torch.randn(2, 6).double()
    assert torch.equal(cell(x, h), cell(x + 0j, h + 0j))


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_it_in_its_precision(kind, nonlinearity):
    cell = CELLS[kind](3, 8, nonlinearity=nonlinearity)
    x = torch.randn(2, 3)
    expected = cell(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cell(x), expected)
        assert cell(x.bfloat16()).dtype == cell.weight_hh.dtype


def test_it_says_what_it_is():
    assert repr(UnitaryRNNCell(3, 8, bias=False, nonlinearity="relu", k=None)) == (
        "UnitaryRNNCell(3, 8, bias=False, nonlinearity=relu, k=None, retraction=exponential, "
        "sketch=tangent, init=henaff)"
    )
    assert isinstance(OrthogonalRNNCell(3, 8), torch.nn.RNNCell)
