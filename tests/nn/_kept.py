"""Modules of all sorts with parameters on a manifold, and what must be true of them."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalLinear,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryConv1d,
    UnitaryRNN,
    UnitaryRNNCell,
    orthogonalize_,
)

MANIFOLD = LowRankUnitary(2, retraction="cayley")
OPTIONS = {"k": 2, "retraction": "cayley"}


def tied(kind):
    layer = kind(3, 8, bidirectional=True, **OPTIONS)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    return layer


def treated(module, *names):
    for name in names:
        orthogonalize_(module, name, **OPTIONS)
    return module


def tied_linears():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    module[1].weight = module[0].weight
    return treated(module, "0.weight")


# The module, and the names of its parameters that belong on the manifold.
MODULES = {
    "orthogonal layer": (
        lambda: OrthogonalRNN(3, 8, 2, **OPTIONS),
        ["weight_hh_l0", "weight_hh_l1"],
    ),
    "unitary layer": (lambda: UnitaryRNN(3, 8, 2, **OPTIONS), ["weight_hh_l0", "weight_hh_l1"]),
    "tied layer": (lambda: tied(OrthogonalRNN), ["weight_hh_l0", "weight_hh_l0_reverse"]),
    "tied unitary layer": (lambda: tied(UnitaryRNN), ["weight_hh_l0", "weight_hh_l0_reverse"]),
    "orthogonal cell": (lambda: OrthogonalRNNCell(3, 8, **OPTIONS), ["weight_hh"]),
    "unitary cell": (lambda: UnitaryRNNCell(3, 8, **OPTIONS), ["weight_hh"]),
    "gated layer": (
        lambda: OrthogonalGRU(3, 8, 2, **OPTIONS),
        ["weight_hh_l0", "weight_hh_l1"],
    ),
    "gated cell": (lambda: OrthogonalGRUCell(3, 8, **OPTIONS), ["weight_hh"]),
    "orthogonal linear": (lambda: OrthogonalLinear(8, 8, **OPTIONS), ["weight"]),
    "orthogonal convolution": (
        lambda: OrthogonalConv2d(4, 4, 4, **OPTIONS),
        ["weight_real", "weight"],
    ),
    "unitary convolution": (lambda: UnitaryConv1d(4, 4, 5, **OPTIONS), ["weight"]),
    "linear": (lambda: treated(torch.nn.Linear(8, 8), "weight"), ["weight"]),
    "one of two linears": (
        lambda: treated(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)), "0.weight"
        ),
        ["0.weight"],
    ),
    "tied linears": (tied_linears, ["0.weight", "1.weight"]),
    "rnn": (lambda: treated(torch.nn.RNN(8, 8, 2), "weight_hh_l1"), ["weight_hh_l1"]),
    "attention": (
        lambda: treated(torch.nn.MultiheadAttention(8, 2), "out_proj.weight"),
        ["out_proj.weight"],
    ),
    "complex linear": (
        lambda: treated(torch.nn.Linear(8, 8, dtype=torch.complex64), "weight"),
        ["weight"],
    ),
}
OTHERS = ["linear", "one of two linears", "tied linears", "rnn", "attention", "complex linear"]
OWN = [name for name in MODULES if name not in OTHERS]
every_module = pytest.mark.parametrize("name", MODULES)


def owner_of(module, name):
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def untouched(module):
    """Return the parameters by name, without a loop over items, which puts back what is plain."""
    return {
        f"{path}.{leaf}" if path else leaf: part._parameters[leaf]
        for path, part in module.named_modules()
        for leaf in list(part._parameters)
        if part._parameters[leaf] is not None
    }


def parameters(module):
    return dict(module.named_parameters(remove_duplicate=False))


def assert_kept(module, names, manifold=MANIFOLD):
    found = untouched(module)
    assert set(names) <= set(found)
    for name, p in found.items():
        if name in names:
            assert type(p) is geoopt.ManifoldParameter
            assert p.manifold == manifold
        else:
            assert type(p) is torch.nn.Parameter
    # torch's recurrent layers run with a list of their own.
    for part in module.modules():
        if isinstance(part, torch.nn.RNNBase):
            for p, name in zip(part._flat_weights, part._flat_weights_names, strict=True):
                assert p is getattr(part, name)


def values(module):
    return {n: p.detach().clone() for n, p in parameters(module).items()}
