"""Modes of torch in which compiled kernels would lose what is asked for."""

import torch

from ..linalg.modes import in_forward_mode, is_transformed


def refusal_of_modes() -> str | None:
    """Return why kernels that torch does not look into cannot serve now, None if they can."""
    if torch.is_grad_enabled():
        return "gradients are recorded, which the kernels do not"
    if torch.compiler.is_compiling():
        # What follows cannot be traced, and what is traced is in none of these modes.
        return None
    # Of what torch.func transforms, the derivative and the batch would be lost; so would the
    # derivative of forward mode.
    if is_transformed():
        return "torch.func transforms the tensors"
    if in_forward_mode():
        return "derivatives are taken in forward mode"
    return None
