"""Optimizers that step unitary matrices at low rank, and everything else beside them."""

from .adam import ProjUNNRiemannianAdam
from .sgd import ProjUNNRiemannianSGD

__all__ = ["ProjUNNRiemannianAdam", "ProjUNNRiemannianSGD"]
