"""Kernels for GPUs, in Triton."""

from .backend import Triton

__all__ = ["Triton"]
