"""Modules that hold unitary or orthogonal parameters."""

from .activation import ModReLU, modrelu
from .cell import OrthogonalRNNCell, UnitaryRNNCell
from .orthogonalize import orthogonality_errors, orthogonalize_
from .readout import RealReadout
from .rnn import OrthogonalRNN, UnitaryRNN

__all__ = [
    "ModReLU",
    "OrthogonalRNN",
    "OrthogonalRNNCell",
    "RealReadout",
    "UnitaryRNN",
    "UnitaryRNNCell",
    "modrelu",
    "orthogonality_errors",
    "orthogonalize_",
]
