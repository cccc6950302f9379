"""Train unitary and orthogonal matrices by rank-k steps, as a plugin for geoopt."""

from . import backends as backends
from . import distributed as distributed
from . import nn as nn
from .diagnosis import diagnose, kept_fraction
from .manifolds import LowRankStiefel, LowRankUnitary
from .monitoring import metrics
from .optim import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, param_groups

__version__ = "0.2.0"
__all__ = [
    "LowRankStiefel",
    "LowRankUnitary",
    "ProjUNNRiemannianAdam",
    "ProjUNNRiemannianSGD",
    "__version__",
    "diagnose",
    "kept_fraction",
    "metrics",
    "param_groups",
]
