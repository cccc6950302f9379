"""The check of modules that users pass, with one wording of its error."""

from typing import Any

import torch


def assert_module(name: str, value: Any) -> None:
    """Raise TypeError for what is no module, such as ``model.parameters()``."""
    if not isinstance(value, torch.nn.Module):
        raise TypeError(
            f"`{name}` must be a torch.nn.Module, got {type(value).__name__}; pass the model "
            "itself, several in a torch.nn.ModuleList."
        )
