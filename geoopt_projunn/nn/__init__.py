"""Layers whose weights are orthogonal or unitary, and stay so in training."""

from .conv import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
)

__all__ = [
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConv3d",
    "UnitaryConv1d",
    "UnitaryConv2d",
    "UnitaryConv3d",
]
