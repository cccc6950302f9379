"""Optimizers that step unitary matrices at low rank, and everything else beside them."""

from .adam import ProjUNNRiemannianAdam
from .groups import param_groups
from .sgd import ProjUNNRiemannianSGD

__all__ = ["ProjUNNRiemannianAdam", "ProjUNNRiemannianSGD", "param_groups"]
