"""Matrices on LowRankUnitary and LowRankStiefel, and their gradients, on several processes."""

from .gradients import sketch_gradients_
from .keeping import keep_manifolds

__all__ = ["keep_manifolds", "sketch_gradients_"]
