"""The parameters of the layers: names, starts, manifolds and dtypes."""

import itertools

import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests._asserts import assert_unitary, assert_within
from tests.nn._oracles import (
    KINDS,
    wide,
)
from tests.nn._rnn import HIDDEN, INPUTS, LAYERS, NONLINEARITIES, make


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_names_and_shapes_of_the_state_dict_are_torchs(num_layers, bidirectional, bias):
    options = {"bidirectional": bidirectional, "bias": bias}
    theirs = torch.nn.RNN(INPUTS, HIDDEN, num_layers, **options).state_dict()
    expected = {name: p.shape for name, p in theirs.items()}
    for kind, nonlinearity in itertools.product(KINDS, NONLINEARITIES):
        ours = make(kind, num_layers, nonlinearity, **options)
        shapes = {name: p.shape for name, p in ours.state_dict().items()}
        offsets = {name: shapes.pop(name) for name in list(shapes) if name.startswith("offset")}
        assert shapes == expected
        assert set(offsets) == (
            {name.replace("weight_hh", "offset") for name in expected if "weight_hh" in name}
            if nonlinearity == "modrelu"
            else set()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_weights_alone_are_on_the_manifold_of_the_arguments(kind):
    layer = make(kind, 2, bidirectional=True, k=2, retraction="polar", sketch="lsi")
    manifold = LowRankUnitary(2, retraction="polar", sketch="lsi")
    for name, p in layer.named_parameters():
        assert getattr(p, "manifold", None) == (manifold if "weight_hh" in name else None)
        if "weight_hh" in name:
            assert_unitary(p.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_starts_as_documented(kind):
    layer = LAYERS[kind](200, 300)
    weight = layer.weight_ih_l0.detach()
    assert weight.abs().square().mean().item() == pytest.approx(2 / 500, rel=0.02)
    parts = [weight.real, weight.imag] if weight.is_complex() else [weight]
    for part in parts:
        assert part.abs().max().item() == pytest.approx((6 / 500 / len(parts)) ** 0.5, rel=0.01)
    for name in ("bias_ih_l0", "bias_hh_l0", "offset_l0"):
        assert not getattr(layer, name).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["henaff", "cayley", "identity", "haar"])
def test_reset_parameters_repeats_the_construction(kind, init):
    torch.manual_seed(5)
    layer = LAYERS[kind](3, 8, 2, init=init)
    first = {name: p.clone() for name, p in layer.state_dict().items()}
    for p in layer.parameters():
        p.data.fill_(7)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in layer.state_dict().items())


def test_a_new_modrelu_layer_keeps_the_norm_of_its_state():
    for kind in KINDS:
        layer = LAYERS[kind](3, 64, dtype=wide(kind))
        h0 = torch.randn(1, 2, 64, dtype=wide(kind))
        _, last = layer(torch.zeros(500, 2, 3, dtype=wide(kind)), h0)
        assert_within(last.norm(dim=-1), h0.norm(dim=-1), 1e-10)


def test_the_default_dtypes_follow_torchs():
    assert OrthogonalRNN(2, 4).weight_hh_l0.dtype == torch.float32
    assert UnitaryRNN(2, 4).weight_hh_l0.dtype == torch.complex64
    torch.set_default_dtype(torch.float64)
    try:
        assert OrthogonalRNN(2, 4).offset_l0.dtype == torch.float64
        assert UnitaryRNN(2, 4).weight_hh_l0.dtype == torch.complex128
        assert UnitaryRNN(2, 4).offset_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_it_says_what_it_is():
    layer = OrthogonalRNN(3, 8, 2, batch_first=True, k=2, retraction="polar", init="haar")
    assert repr(layer) == (
        "OrthogonalRNN(3, 8, num_layers=2, batch_first=True, nonlinearity=modrelu, k=2, "
        "retraction=polar, sketch=tangent, init=haar)"
    )
    assert isinstance(layer, torch.nn.RNN)
