"""What messages call a parameter, and where warnings point."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch

_NOT_THE_USER = ("geoopt_projunn", "torch", "geoopt")


def described(p: torch.Tensor, group: Mapping[str, Any]) -> str:
    """Return "parameter `name` of shape …", or "a parameter of shape …" where names are unknown.

    Names are known to an optimizer that was made of ``module.named_parameters()``.
    """
    for q, name in zip(group["params"], group.get("param_names", ()), strict=False):
        if q is p:
            return f"parameter `{name}` of shape {tuple(p.shape)}"
    return f"a parameter of shape {tuple(p.shape)}"


def capitalized(text: str) -> str:
    """Return a text as it begins a sentence."""
    return text[0].upper() + text[1:]


def warn(message: str) -> None:
    """Warn at the line of the user's code that called this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
