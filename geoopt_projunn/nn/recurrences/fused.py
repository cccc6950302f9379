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
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from ...linalg.precision import full_precision_cudnn
from .untaped import gradients_of

Call = Callable[[Tensor, Tensor | None, list[Tensor]], tuple[Tensor, Tensor]]


def in_full_precision(
    call: Call, x: Tensor, h0: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return ``call(x, h0, weights)``, the states and the last ones."""
    given = (x, h0, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _InFullPrecision.apply(call, *given)  # type: ignore[no-untyped-call]
    return full_precision_cudnn(call)(x, h0, weights)


class _InFullPrecision(torch.autograd.Function):
    """A graph of torch's within one node, which keeps what the graph would have kept.

    The two graphs share no node. So hooks of a parameter are called once, and a pass may run on
    another stream than an earlier one whose graph is still there, as where a CUDA graph records it.
    """

    @staticmethod
    @full_precision_cudnn
    def forward(
        ctx: Any, call: Call, x: Tensor, h0: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        # The graph within holds this list, and tensors in it hold that graph: it would never be
        # freed. So the list is empty except during a pass, and this node saves the tensors.
        kept: list[Tensor] = []
        ctx.kept = kept

        def pack(t: Tensor) -> int:
            kept.append(t)
            return len(kept) - 1

        try:
            with torch.enable_grad(), saved_tensors_hooks(pack, kept.__getitem__):
                own_x, own_h0 = _apart(x), None if h0 is None else _apart(h0)
                own = [_apart(weight) for weight in weights]
                outputs = call(own_x, own_h0, own)
            ctx.save_for_backward(x, h0, *weights, *kept)
        finally:
            kept.clear()
        # Tensors would stay in memory as long as this node.
        ctx.inputs = [_edge(t) for t in (own_x, own_h0, *own)]
        ctx.outputs = [get_gradient_edge(y) for y in outputs]
        ctx.set_materialize_grads(False)
        return tuple(y.detach() for y in outputs)

    @staticmethod
    @full_precision_cudnn
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors
        given, kept = saved[: len(needed)], saved[len(needed) :]
        ctx.kept.extend(kept)
        try:
            # What it keeps are numbers of tensors: those themselves are freed with this node's.
            found = gradients_of(ctx.inputs, ctx.outputs, grads, needed, retain_graph=True)
        finally:
            ctx.kept.clear()
        if torch.is_grad_enabled():
            end = partial(_End.apply, *given, *grads)
            found = [None if t is None else end(t) for t in found]
        return None, *found


class _End(torch.autograd.Function):
    """The last of the tensors, which has no derivative with respect to any of them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        *_, last = tensors
        assert last is not None
        return last.view_as(last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(
            "cuDNN knows no second derivatives of a recurrence; call the layer in "
            "`with torch.backends.cudnn.flags(enabled=False):`, where it runs without cuDNN and "
            "has derivatives of any order."
        )


def _apart(t: Tensor) -> Tensor:
    """Return the values of t at the start of a graph, which does not keep them as a leaf would."""
    start = t.new_empty(0, requires_grad=t.requires_grad)
    return _End.apply(start, t.detach())  # type: ignore[no-untyped-call]


def _edge(t: Tensor | None) -> GradientEdge | None:
    return get_gradient_edge(t) if t is not None and t.requires_grad else None
