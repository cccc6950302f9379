"""The parameters of the gated layer: names, starts, manifolds and precision."""

import itertools

import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalGRU, orthogonality_errors, project_
from tests._asserts import assert_unitary, assert_within
from tests.nn._gated import HIDDEN, INPUTS, NONLINEARITIES, N, T, as_torchs, make


def test_the_weights_of_torch_can_be_loaded_as_documented():
    gru = torch.nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True)
    layer = OrthogonalGRU(INPUTS, HIDDEN, 2, bidirectional=True, nonlinearity="tanh")
    n = layer.hidden_size
    state = gru.state_dict()
    for name in [name for name in state if name.startswith("weight_hh")]:
        gates, state[name] = state[name].split([2 * n, n])
        state[name.replace("hh", "gates")] = gates
    layer.load_state_dict(state)
    x = torch.randn(T, N, INPUTS)
    assert_within(layer(x)[0], gru(x)[0], 1e-5)
    assert max(orthogonality_errors(layer).values()) > 0.1
    assert max(orthogonality_errors(project_(layer)).values()) < 1e-5


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_names_and_shapes_of_the_state_dict(nonlinearity):
    for bias, bidirectional in itertools.product((False, True), repeat=2):
        options = {"bias": bias, "bidirectional": bidirectional}
        expected = torch.nn.GRU(INPUTS, HIDDEN, 2, **options).state_dict()
        ours = make(2, nonlinearity=nonlinearity, **options)
        state = ours.state_dict()
        for name in [name for name in expected if name.startswith("weight_hh")]:
            assert state[name].shape == (HIDDEN, HIDDEN)
            assert state[name.replace("hh", "gates")].shape == (2 * HIDDEN, HIDDEN)
            if nonlinearity == "modrelu":
                assert state.pop(name.replace("weight_hh", "offset")).shape == (HIDDEN,)
        shapes = {name: value.shape for name, value in as_torchs(state).items()}
        assert shapes == {name: value.shape for name, value in expected.items()}
        known = {id(p) for weights in ours.all_weights for p in weights}
        offsets = {id(p) for name, p in ours.named_parameters() if name.startswith("offset")}
        assert known == {id(p) for p in ours.parameters()} - offsets


def test_the_orthogonal_weights_alone_are_on_the_manifold_of_the_arguments():
    layer = make(2, bidirectional=True, k=2, retraction="polar", sketch="lsi")
    manifold = LowRankUnitary(2, retraction="polar", sketch="lsi")
    for name, p in layer.named_parameters():
        on_it = name.startswith("weight_hh")
        assert getattr(p, "manifold", None) == (manifold if on_it else None)
        if on_it:
            assert_unitary(p.detach())


def test_everything_else_starts_as_documented():
    layer = OrthogonalGRU(200, 300)
    for name, inputs in (("weight_ih_l0", 200), ("weight_gates_l0", 300)):
        for part in getattr(layer, name).detach().split(300):
            variance = 2 / (inputs + 300)
            assert part.square().mean().item() == pytest.approx(variance, rel=0.03)
            assert part.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=0.01)
    for name in ("bias_ih_l0", "bias_hh_l0", "offset_l0"):
        assert not getattr(layer, name).any()


def test_reset_parameters_repeats_the_construction():
    torch.manual_seed(5)
    layer = OrthogonalGRU(3, 8, 2, init="haar")
    first = {name: p.clone() for name, p in layer.state_dict().items()}
    for p in layer.parameters():
        p.data.fill_(7)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in layer.state_dict().items())


def test_training_moves_every_parameter_and_stays_on_the_manifold():
    layer = OrthogonalGRU(INPUTS, HIDDEN, 2, bidirectional=True)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = ProjUNNRiemannianAdam(layer.parameters(), lr=0.05)
    x = torch.randn(T, N, INPUTS)
    for _ in range(30):
        optimizer.zero_grad()
        (layer(x)[0] - 0.1).square().sum().backward()
        optimizer.step()
    assert max(orthogonality_errors(layer, exact=True).values()) < 1e-5
    assert not any(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_it_says_what_it_is():
    layer = OrthogonalGRU(3, 8, 2, batch_first=True, k=2, retraction="polar", init="haar")
    assert repr(layer) == (
        "OrthogonalGRU(3, 8, num_layers=2, batch_first=True, nonlinearity=modrelu, k=2, "
        "retraction=polar, sketch=tangent, init=haar)"
    )
    assert isinstance(layer, torch.nn.GRU)
