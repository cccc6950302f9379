"""Warnings that point at the user's code."""

import sys
import warnings

_NOT_THE_USER = ("geoopt_projunn", "torch", "geoopt", "triton")


def warn(message: str) -> None:
    """Warn at the line of the user's code that called this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
