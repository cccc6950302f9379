"""Sizes, flags and names that modules are given."""

import enum

import numpy as np
import pytest
import torch

from geoopt_projunn.nn import (
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalLinear,
    OrthogonalRNN,
    OrthogonalRNNCell,
    RealReadout,
    UnitaryRNN,
    UnitaryRNNCell,
)

LAYERS = (OrthogonalRNN, UnitaryRNN, OrthogonalGRU)
CELLS = (OrthogonalRNNCell, UnitaryRNNCell, OrthogonalGRUCell)
every_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


@pytest.mark.parametrize("value", ["False", 1, None, torch.float64], ids=str)
def test_nothing_else_is_taken_for_a_flag(value):
    """Such as what stands in the place of `bias`; that of layers torch checks."""
    words = f"must be True or False, got {value!r}"
    for kind in LAYERS:
        with pytest.raises(TypeError, match=f"`bidirectional` {words}"):
            kind(3, 8, bidirectional=value)
    for kind in (*CELLS, OrthogonalLinear, RealReadout):
        with pytest.raises(TypeError, match=f"`bias` {words}"):
            kind(3, 8, value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", [*CELLS, OrthogonalLinear, RealReadout])
def test_sizes_are_positive(kind):
    """There may be no input, as in torch's cells."""
    for sizes, value in (((3, -8), -8), ((-3, 8), -3)):
        with pytest.raises(ValueError, match=f"`[a-z_]*` must be at least [01], got {value}"):
            kind(*sizes)
    if kind is not OrthogonalLinear:
        x = torch.zeros(2, 0, dtype=torch.complex64 if kind is RealReadout else None)
        assert kind(0, 8)(x).shape == (2, 8)


class Name(enum.StrEnum):
    HAAR = "haar"
    RELU = "relu"


@every_kind
def test_names_may_be_of_a_subclass_of_str(kind):
    for init, nonlinearity in ((Name.HAAR, Name.RELU), (np.str_("haar"), np.str_("relu"))):
        assert kind(3, 8, init=init, nonlinearity=nonlinearity).init == "haar"
    with pytest.raises(ValueError, match=r"`init` must be one of .*, got 1"):
        kind(3, 8, init=1)
