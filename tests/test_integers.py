"""Integers that users pass may be of numpy, and what is none is refused by its name."""

import io

import geoopt
import numpy as np
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    kept_fraction,
    nn,
    param_groups,
)


def stabilized(kind):
    def make(value):
        manifold = LowRankUnitary(1)
        p = geoopt.ManifoldParameter(manifold.random(4, 4), manifold=manifold)
        optimizer = kind([p], stabilize=value)
        return optimizer.state_dict()["param_groups"]

    return make


def rates(groups):
    return [group["lr"] for group in groups]


def shares(value):
    return kept_fraction(LowRankUnitary(1).origin(8, 8), torch.eye(8).roll(1, 0), [value])


def orthogonalized(**options):
    return nn.orthogonalize_(torch.nn.Linear(8, 8), "weight", **options).manifold


MAKERS = {
    "k": LowRankUnitary,
    "sweep": lambda value: LowRankUnitary(1, sweep=value),
    "blocks": lambda value: LowRankStiefel(blocks=value),
    "k, of a weight": lambda value: orthogonalized(k=value),
    "blocks, of a weight": lambda value: orthogonalized(blocks=value),
    r"ks[0]": shares,
    "stabilize, SGD": stabilized(ProjUNNRiemannianSGD),
    "stabilize, Adam": stabilized(ProjUNNRiemannianAdam),
    "steps": lambda value: rates(param_groups(nn.OrthogonalLinear(4, 4), lr=0.1, steps=value)),
    "sequence_length": lambda value: rates(
        param_groups(nn.OrthogonalRNN(4, 4), lr=0.1, steps=2, sequence_length=value)
    ),
    "num_features": nn.ModReLU,
}
for kind in (nn.OrthogonalRNN, nn.UnitaryRNN, nn.OrthogonalGRU):
    MAKERS |= {
        f"input_size, {kind.__name__}": lambda value, kind=kind: kind(value, 4),
        f"hidden_size, {kind.__name__}": lambda value, kind=kind: kind(4, value),
        f"num_layers, {kind.__name__}": lambda value, kind=kind: kind(4, 4, value),
    }
for kind in (nn.OrthogonalRNNCell, nn.UnitaryRNNCell, nn.OrthogonalGRUCell):
    MAKERS |= {
        f"input_size, {kind.__name__}": lambda value, kind=kind: kind(value, 4),
        f"hidden_size, {kind.__name__}": lambda value, kind=kind: kind(4, value),
    }
for kind in (nn.OrthogonalLinear, nn.RealReadout):
    MAKERS |= {
        f"in_features, {kind.__name__}": lambda value, kind=kind: kind(value, 4),
        f"out_features, {kind.__name__}": lambda value, kind=kind: kind(4, value),
    }
for kind in (nn.OrthogonalConv1d, nn.BlockOrthogonalConv1d):
    MAKERS |= {
        f"in_channels, {kind.__name__}": lambda value, kind=kind: kind(value, 4, 4),
        f"out_channels, {kind.__name__}": lambda value, kind=kind: kind(4, value, 4),
        f"stride, {kind.__name__}": lambda value, kind=kind: kind(4, 8, 4, stride=value),
    }
MAKERS |= {
    "size": lambda value: nn.OrthogonalConv2d(4, 4, (4, value)),
    "kernel_size": lambda value: nn.BlockOrthogonalConv2d(4, 4, (3, value)),
}
each_argument = pytest.mark.parametrize("name", MAKERS)


@each_argument
def test_an_integer_of_numpy_is_the_same_number(name):
    made, expected = MAKERS[name](np.int64(2)), MAKERS[name](2)
    assert repr(made) == repr(expected)
    assert "np." not in repr(made)
    if isinstance(made, torch.nn.Module):
        shapes = {n: p.shape for n, p in expected.named_parameters()}
        assert {n: p.shape for n, p in made.named_parameters()} == shapes


@each_argument
@pytest.mark.parametrize("value", [True, 2.0, "2", torch.tensor(2), np.bool_(True)], ids=repr)
def test_what_is_no_integer_is_refused_by_its_name(name, value):
    argument = name.split(",")[0].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(TypeError, match=rf"`{argument}` must be an integer, got "):
        MAKERS[name](value)


def test_a_checkpoint_holds_no_number_of_numpy():
    manifold = LowRankUnitary(np.int64(1))
    p = geoopt.ManifoldParameter(manifold.random(4, 4), manifold=manifold)
    model = torch.nn.ParameterList([p])
    groups = param_groups(model, lr=0.1, steps=np.int64(100))
    optimizer = ProjUNNRiemannianSGD(
        [{**group, "stabilize": np.int64(5)} for group in groups], stabilize=np.int64(3)
    )
    p.grad = torch.ones(4, 4)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["param_groups"][0]["stabilize"] == 5
