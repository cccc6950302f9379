"""torch's own kernels of a recurrence, in full precision both ways.

cuDNN computes in TF32 unless told otherwise, and asks about it again in the backward pass, which
autograd runs on its own. Here the backward pass is a function of ours, which asks for full
precision around cuDNN's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from ..linalg.precision import full_precision_cudnn

Call = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def in_full_precision(
    call: Call, x: Tensor, h0: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return ``call(x, h0)``, the states and the last ones; ``weights`` are what it reads."""
    given = (x, h0, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _InFullPrecision.apply(call, *given)  # type: ignore[no-untyped-call]
    return full_precision_cudnn(call)(x, h0)


class _InFullPrecision(torch.autograd.Function):
    """A graph of torch's within one node, which keeps what the graph would have kept."""

    @staticmethod
    @full_precision_cudnn
    def forward(
        ctx: Any, call: Call, x: Tensor, h0: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []
        given_back: list[Tensor] = []
        ctx.given_back = given_back

        def pack(t: Tensor) -> int:
            kept.append(t)
            return len(kept) - 1

        with torch.enable_grad(), saved_tensors_hooks(pack, given_back.__getitem__):
            own_x, own_h0 = _apart(x), None if h0 is None else _apart(h0)
            outputs = call(own_x, own_h0)
        ctx.inputs = (own_x, own_h0, *weights)
        # The outputs themselves would stay in memory as long as this node.
        ctx.outputs = [get_gradient_edge(y) for y in outputs]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, *weights, *kept)
        return tuple(y.detach() for y in outputs)

    @staticmethod
    @full_precision_cudnn
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        wanted = [t for t, need in zip(ctx.inputs, needed, strict=True) if need]
        known = [(y, g) for y, g in zip(ctx.outputs, grads, strict=True) if g is not None]
        saved = ctx.saved_tensors
        given, kept = saved[: len(needed)], saved[len(needed) :]
        ctx.given_back.extend(kept)
        try:
            # What it keeps are numbers of tensors: those themselves are freed with this node's.
            found = iter(
                torch.autograd.grad(
                    [y for y, _ in known],
                    wanted,
                    [g for _, g in known],
                    retain_graph=True,
                    allow_unused=True,
                )
            )
        finally:
            ctx.given_back.clear()
        if torch.is_grad_enabled():
            once = partial(_Once.apply, *given, *grads)
            found = iter([None if t is None else once(t) for t in found])
        return None, *(next(found) if need else None for need in needed)


class _Once(torch.autograd.Function):
    """A derivative that has none itself, with respect to any of what it was computed of."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        *_, derivative = tensors
        assert derivative is not None
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(
            "cuDNN knows no second derivatives of a recurrence; call the layer in "
            "`with torch.backends.cudnn.flags(enabled=False):`, where it runs without cuDNN and "
            "has derivatives of any order."
        )


def _apart(t: Tensor) -> Tensor:
    """Return a leaf with the values of t."""
    return t.detach().requires_grad_(t.requires_grad)
