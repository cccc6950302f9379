"""Train unitary and orthogonal matrices by rank-k steps, as a plugin for geoopt."""

from . import backends as backends
from . import nn as nn
from .manifold import LowRankStiefel, LowRankUnitary
from .optim import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

__version__ = "0.1.0"
__all__ = [
    "LowRankStiefel",
    "LowRankUnitary",
    "ProjUNNRiemannianAdam",
    "ProjUNNRiemannianSGD",
    "__version__",
]
