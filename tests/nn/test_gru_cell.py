"""A gated cell is one step of its layer."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalGRU, OrthogonalGRUCell
from tests._asserts import assert_unitary, assert_within
from tests.nn._gated import as_torchs
from tests.nn._oracles import scattered

NONLINEARITIES = ("modrelu", "relu", "tanh")


def make(**options):
    return scattered(OrthogonalGRUCell(3, 6, dtype=torch.float64, init="haar", **options))


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_loop_of_cells_is_the_layer(nonlinearity, bias):
    cell = make(nonlinearity=nonlinearity, bias=bias)
    layer = OrthogonalGRU(3, 6, nonlinearity=nonlinearity, bias=bias, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x = torch.randn(4, 2, 3).double()
    states, last = layer(x)
    states.square().sum().backward()
    h, total = None, 0
    for t in range(4):
        h = cell(x[t], h)
        assert_within(h, states[t], 1e-12)
        total = total + h.square().sum()
    total.backward()
    for name, p in cell.named_parameters():
        assert_within(p.grad, getattr(layer, f"{name}_l0").grad, 1e-10)
    assert_within(cell(x[0, 0], last[0, 0]), cell(x[0, :1], last[0, :1])[0], 1e-15)


@pytest.mark.parametrize("bias", [False, True])
def test_with_tanh_it_is_torchs_cell(bias):
    cell = make(nonlinearity="tanh", bias=bias)
    theirs = torch.nn.GRUCell(3, 6, bias, dtype=torch.float64)
    theirs.load_state_dict(as_torchs(cell.state_dict()))
    x, h = torch.randn(2, 3).double(), torch.randn(2, 6).double()
    for arguments in ((x, h), (x,), (x[0], h[0]), (x[0],)):
        assert cell(*arguments).shape == theirs(*arguments).shape
        assert_within(cell(*arguments), theirs(*arguments), 1e-14)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_first_and_second_derivatives(nonlinearity):
    cell = make(nonlinearity=nonlinearity)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cell, (x, h))
    assert torch.autograd.gradgradcheck(cell, (x, h))


def test_parameters():
    cell = make(k=2, retraction="cayley", sketch="column")
    state = cell.state_dict()
    assert state.pop("offset").shape == (6,)
    shapes = {name: value.shape for name, value in as_torchs(state).items()}
    theirs = torch.nn.GRUCell(3, 6).state_dict()
    assert shapes == {name: value.shape for name, value in theirs.items()}
    assert cell.weight_hh.manifold == LowRankUnitary(2, retraction="cayley", sketch="column")
    assert_unitary(cell.weight_hh.detach())


def test_autocast_leaves_it_in_its_precision():
    cell = OrthogonalGRUCell(3, 8)
    x = torch.randn(2, 3)
    expected = cell(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cell(x), expected)
        assert cell(x.bfloat16()).dtype == torch.float32


def test_it_says_what_it_is():
    assert repr(OrthogonalGRUCell(3, 8, bias=False, nonlinearity="relu", k=None)) == (
        "OrthogonalGRUCell(3, 8, bias=False, nonlinearity=relu, k=None, retraction=exponential, "
        "sketch=tangent, init=henaff)"
    )
    assert isinstance(OrthogonalGRUCell(3, 8), torch.nn.GRUCell)
