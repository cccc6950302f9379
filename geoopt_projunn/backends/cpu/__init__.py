"""Compiled kernels for CPUs."""

from .backend import CPU

__all__ = ["CPU"]
