"""Modules that hold unitary or orthogonal parameters."""

from .activation import ModReLU, modrelu
from .block_conv import BlockOrthogonalConv1d, BlockOrthogonalConv2d
from .cell import OrthogonalRNNCell, UnitaryRNNCell
from .conv import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
)
from .gru import OrthogonalGRU, OrthogonalGRUCell
from .linear import OrthogonalLinear
from .orthogonalize import orthogonalize_
from .readout import RealReadout
from .rnn import OrthogonalRNN, UnitaryRNN
from .upkeep import orthogonality_errors, project_

__all__ = [
    "BlockOrthogonalConv1d",
    "BlockOrthogonalConv2d",
    "ModReLU",
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConv3d",
    "OrthogonalGRU",
    "OrthogonalGRUCell",
    "OrthogonalLinear",
    "OrthogonalRNN",
    "OrthogonalRNNCell",
    "RealReadout",
    "UnitaryConv1d",
    "UnitaryConv2d",
    "UnitaryConv3d",
    "UnitaryRNN",
    "UnitaryRNNCell",
    "modrelu",
    "orthogonality_errors",
    "orthogonalize_",
    "project_",
]
