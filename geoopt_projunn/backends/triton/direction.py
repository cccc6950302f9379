"""What a step follows."""

from typing import Any, NamedTuple

import torch

from ..spec import Buffers, NativeRule
from .kernels import directions


class Direction(NamedTuple):
    """A gradient, what its rule keeps, and which rule it is: together they are a direction."""

    tensors: tuple[torch.Tensor, ...]
    """The gradient, (b, n, p), and the buffers of the rule, each the gradient if there is none:
    the first moment, and Adam's second moments and the largest of them, one for each entry or one
    for each matrix."""
    rule: Any
    """One of those in :mod:`.kernels.directions`."""
    has_most: bool
    numbers: tuple[Any, ...]
    """The three of :class:`..spec.NativeRule`."""

    @classmethod
    def of(cls, grad: torch.Tensor, buffers: Buffers, native: NativeRule) -> "Direction":
        """Put together what a native rule makes of a gradient."""
        state = [buffers[name] for name in native.state]
        numbers = (*map(float, native.numbers), 0.0, 0.0, 0.0)[:3]
        rule = directions.GRADIENT
        if native.name == "momentum":
            rule = directions.NESTEROV if numbers[2] else directions.MOMENTUM
        elif native.name == "adam":
            is_scalar = state[1].shape[-2:] == (1, 1)
            rule = directions.ADAM_SCALAR if is_scalar else directions.ADAM
        tensors = (grad, *state, *(grad,) * (3 - len(state)))
        return cls(tensors, rule, len(state) == 3, numbers)
