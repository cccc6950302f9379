"""Differentiable functions of stacks of matrices."""

from typing import Any

import torch


class OfStacks(torch.autograd.Function):
    """A function of tensors (*, n, n), for which torch.func.vmap is one more stack."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the first argument and the result."""
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[torch.Tensor, int]:
        """Apply the function to stacks of stacks."""
        stacks = [
            arg
            if not isinstance(arg, torch.Tensor)
            else arg.expand(info.batch_size, *arg.shape)
            if dim is None
            else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return cls.apply(*stacks), 0  # type: ignore[no-untyped-call]
