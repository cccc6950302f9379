"""What every module of torch can do, whoever wrote it."""

import pytest
import torch

from geoopt_projunn import nn

# A module, its first weight on a manifold, and the shape of an input.
MODULES = {
    "linear": (lambda **o: nn.OrthogonalLinear(4, 6, **o), "weight", (2, 4)),
    "square linear": (lambda **o: nn.OrthogonalLinear(4, 4, **o), "weight", (2, 4)),
    "small kernel": (lambda **o: nn.BlockOrthogonalConv2d(3, 4, 3, **o), "weight", (2, 3, 4, 5)),
    "projectors": (lambda **o: nn.BlockOrthogonalConv1d(3, 4, 3, **o), "projectors", (2, 3, 5)),
    "full width": (lambda **o: nn.OrthogonalConv2d(3, 4, 4, **o), "weight", (2, 3, 4, 4)),
    "gated layer": (lambda **o: nn.OrthogonalGRU(3, 4, **o), "weight_hh_l0", (5, 2, 3)),
    "gated cell": (lambda **o: nn.OrthogonalGRUCell(3, 4, **o), "weight_hh", (2, 3)),
    "layer": (lambda **o: nn.OrthogonalRNN(3, 4, **o), "weight_hh_l0", (5, 2, 3)),
}
every_module = pytest.mark.parametrize("name", MODULES)


@every_module
def test_shapes_come_without_values(name):
    make, _, shape = MODULES[name]
    expected, y = (make(device=d)(torch.zeros(shape, device=d)) for d in ("cpu", "meta"))
    y, expected = (t[0] if isinstance(t, tuple) else t for t in (y, expected))
    assert y.is_meta
    assert y.shape == expected.shape


@every_module
@pytest.mark.parametrize("init", ["identity", "haar"])
def test_a_device_that_is_given_comes_before_that_of_the_context(name, init):
    make, weight, _ = MODULES[name]
    with torch.device("meta"):
        module = make(device="cpu", init=init)
        assert getattr(make(init=init), weight).is_meta
    assert {str(p.device) for p in module.parameters()} == {"cpu"}
    assert max(nn.orthogonality_errors(module).values()) < 1e-5


@every_module
def test_a_default_dtype_that_does_not_do_is_named(name):
    make, _, _ = MODULES[name]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(TypeError, match=r"`dtype` of .*Orth.* must be .*got torch.bf"):
            make()
        # And one that is asked for comes before it.
        module = make(dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in module.parameters()} <= {torch.float32, torch.complex64}


@every_module
def test_a_weight_may_be_away_or_plain(name):
    make, weight, shape = MODULES[name]
    module = make(init="haar")
    before = getattr(module, weight).detach().clone()
    delattr(module, weight)
    assert repr(module)
    setattr(module, weight, torch.nn.Parameter(before.clone()))
    assert type(getattr(module, weight)) is torch.nn.Parameter
    assert repr(module)
    module(torch.zeros(shape))
    module.reset_parameters()
    after = getattr(module, weight).detach()
    assert not torch.equal(after, before)
    gram = after.mH @ after if after.shape[-2] >= after.shape[-1] else after @ after.mH
    assert (gram - torch.eye(gram.shape[-1])).abs().max() < 1e-5


@pytest.mark.parametrize("make", [nn.OrthogonalGRU, nn.OrthogonalRNN, nn.OrthogonalLinear])
def test_a_rank_that_is_too_high_is_said_of_the_weight(make):
    words = f"`weight.*` of {make.__name__} does not fit: `k` must satisfy 1 <= k <= .* = 2, got 3"
    with pytest.raises(ValueError, match=words):
        make(4, 4, k=3)


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: nn.OrthogonalGRU(3, 4), {"weight_ih_l0": 3, "weight_gates_l0": 2}),
        (lambda: nn.OrthogonalGRUCell(3, 4), {"weight_ih": 3, "weight_gates": 2}),
        (lambda: nn.UnitaryRNN(3, 4), {"weight_ih_l0": 1}),
    ],
)
def test_weights_that_are_drawn_anew_stay_on_their_manifolds(make, weights):
    module = make()
    for name, blocks in weights.items():
        nn.orthogonalize_(module, name, blocks=blocks)
    before = {name: getattr(module, name).detach().clone() for name in weights}
    module.reset_parameters()
    errors = nn.orthogonality_errors(module)
    assert set(weights) < set(errors)
    assert max(errors.values()) < 1e-5
    for name, value in before.items():
        assert not torch.equal(getattr(module, name), value)


@pytest.mark.parametrize("name", ["small kernel", "full width"])
def test_no_layer_is_to_become_one_of_integers(name):
    make, _, shape = MODULES[name]
    with pytest.raises(TypeError, match=r"got torch.int64; convert it\.$"):
        make()(torch.zeros(shape, dtype=torch.int64))
