"""Modes of torch in which compiled kernels would lose what is asked for."""

import torch


def refusal_of_modes() -> str | None:
    """Return why kernels that torch does not look into cannot serve now, None if they can."""
    if torch.is_grad_enabled():
        return "gradients are recorded, which the kernels do not"
    if torch.compiler.is_compiling():
        # What follows cannot be traced, and what is traced is in none of these modes.
        return None
    # Of what torch.func transforms, the derivative and the batch would be lost; so would the
    # derivative of forward mode.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms the tensors"
    if torch.autograd.forward_ad._current_level >= 0:
        return "derivatives are taken in forward mode"
    return None


def is_watched() -> bool:
    """Return whether a mode of torch or a profiler has to be told of each operation."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._autograd._profiler_enabled()
