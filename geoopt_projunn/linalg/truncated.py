"""Results that have no derivative, and say so when one is asked for."""

from typing import Any

import torch


class Truncated(torch.autograd.Function):
    """The result of a step of rank k, which refuses to be differentiated.

    The basis of a sketch has no derivative where rows depend on each other, as they do in any
    direction of low rank. A result without a history would be taken for a constant, in a sum with
    others without a word.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(method: str, result: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return a copy of the result of a method for some inputs."""
        # A view could not be changed in place.
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the name of the method."""
        ctx.method = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Refuse."""
        raise RuntimeError(
            f"`{ctx.method}` with a rank k cannot be differentiated, but a gradient with respect "
            "to its arguments was asked for; use k=None, whose steps can, or detach the result."
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse, for what forward mode finds is wrong where rows depend on each other."""
        raise RuntimeError(
            f"`{ctx.method}` with a rank k cannot be differentiated, but its arguments have "
            "tangents of forward mode; use k=None, whose steps can, or detach the arguments."
        )


def without_derivative(method: str, result: Any, inputs: tuple[Any, ...]) -> Any:
    """Return tensors, one or a tuple of them, that refuse a derivative by the inputs."""
    # Compilers would look for a derivative while they trace.
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or torch.compiler.is_compiling():
        return result
    given = [t for t in inputs if isinstance(t, torch.Tensor)]
    if not _is_differentiated(given):
        return result
    if isinstance(result, tuple):
        return tuple(Truncated.apply(method, one, *given) for one in result)  # type: ignore[no-untyped-call]
    return Truncated.apply(method, result, *given)  # type: ignore[no-untyped-call]


def _is_differentiated(given: list[torch.Tensor]) -> bool:
    if torch.is_grad_enabled() and (
        any(t.requires_grad for t in given)
        # Of a batch of torch.func.vmap one does not see which require a gradient.
        or torch._C._are_functorch_transforms_active()
    ):
        return True
    return any(map(_has_tangent, given))


def _has_tangent(t: torch.Tensor) -> bool:
    """Return whether forward mode differentiates, which no_grad does not turn off."""
    return torch.autograd.forward_ad.unpack_dual(t).tangent is not None
