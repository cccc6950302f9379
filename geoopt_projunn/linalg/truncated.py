"""Results that have no derivative, and say so when one is asked for."""

from functools import partial
from typing import Any

import torch

from .modes import is_transformed

_REFUSAL = (
    "`{}` with a rank k cannot be differentiated, but a gradient with respect to its arguments was "
    "asked for; use k=None, whose steps can, or detach the result."
)

_REFUSAL_FORWARD = (
    "`{}` with a rank k cannot be differentiated, but its arguments have tangents of forward mode; "
    "use k=None, whose steps can, or detach the arguments."
)


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
        raise RuntimeError(_REFUSAL.format(ctx.method))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse, for what forward mode finds is wrong where rows depend on each other."""
        raise RuntimeError(_REFUSAL_FORWARD.format(ctx.method))


# Where torch makes a program, it looks for derivatives while it does so: an error has to be part of
# the program, as an operator. It takes the gradient, without which it would belong to the forward
# pass.
@torch.library.custom_op("geoopt_projunn::refuse_derivative", mutates_args=())
def _refuse_derivative(grad: torch.Tensor, like: torch.Tensor, method: str) -> torch.Tensor:
    raise RuntimeError(_REFUSAL.format(method))


@torch.library.custom_op("geoopt_projunn::truncated", mutates_args=())
def _truncated(result: torch.Tensor, inputs: list[torch.Tensor], method: str) -> torch.Tensor:
    return result.clone()


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, given, ctx.method = inputs
    ctx.save_for_backward(*given)


def _refuse_all(ctx: Any, grad: torch.Tensor) -> Any:
    return None, [_refuse_derivative(grad, t, ctx.method) for t in ctx.saved_tensors], None


def _of_batch(info: Any, dims: Any, result: torch.Tensor, inputs: Any, method: str) -> Any:
    return _truncated(result, inputs, method), dims[0]


_refuse_derivative.register_fake(lambda grad, like, method: torch.empty_like(like))
_truncated.register_fake(lambda result, inputs, method: torch.empty_like(result))
_truncated.register_autograd(_refuse_all, setup_context=_keep_inputs)
_truncated.register_vmap(_of_batch)


def without_derivative(method: str, result: Any, inputs: tuple[Any, ...]) -> Any:
    """Return tensors, one or a tuple of them, that refuse a derivative by the inputs."""
    given = [t for t in inputs if isinstance(t, torch.Tensor)]
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or torch.compiler.is_compiling():
        if any(map(_has_tangent, given)):
            raise RuntimeError(_REFUSAL_FORWARD.format(method))
        if not is_traced and not torch.is_grad_enabled():
            return result
        refusing: Any = partial(_truncated, inputs=given, method=method)
    elif _is_differentiated(given):
        refusing = partial(_refusing, method, given)
    else:
        return result
    return tuple(map(refusing, result)) if isinstance(result, tuple) else refusing(result)


def _refusing(method: str, given: list[torch.Tensor], result: torch.Tensor) -> Any:
    return Truncated.apply(method, result, *given)  # type: ignore[no-untyped-call]


def _is_differentiated(given: list[torch.Tensor]) -> bool:
    if torch.is_grad_enabled() and (
        any(t.requires_grad for t in given)
        # Of a batch of torch.func.vmap one does not see which require a gradient.
        or is_transformed()
    ):
        return True
    return any(map(_has_tangent, given))


def _has_tangent(t: torch.Tensor) -> bool:
    """Return whether forward mode differentiates, which no_grad does not turn off."""
    return torch.autograd.forward_ad.unpack_dual(t).tangent is not None
