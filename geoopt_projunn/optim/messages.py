"""What messages call a parameter."""

from collections.abc import Mapping
from typing import Any

import torch


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
