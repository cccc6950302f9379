"""A recurrence as one differentiable function, which keeps for its backward pass what it needs.

Autograd would keep the operands of every operation of every step. Where a call must consist of
torch's own operations, or is to be differentiated more than once, these run instead.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...linalg.precision import full_precision
from ..transforms import needs_torch_operations
from .order import Order

Grads = tuple[Tensor | None, Tensor | None]
"""The gradients of the states and of the last states."""


class Recurrence:
    """What one direction of one layer computes of its input, its first state and its weights.

    It returns the states (rows, n) and the last state of each sequence (batch, n). The ``given``
    arguments of all methods are the input, the first state or None, and the weights.
    """

    names: ClassVar[tuple[str, ...]]
    """Of the given arguments, in error messages."""

    def __init__(self, nonlinearity: str, order: Order) -> None:
        self.nonlinearity, self.order = nonlinearity, order

    def forward(self, *given: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Run without a tape; return both results, and what else :meth:`backward` needs."""
        raise NotImplementedError

    def unrolled(self, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run as a loop of torch's own operations."""
        raise NotImplementedError

    def which_are_read(self, needed: tuple[bool, ...], states: Tensor) -> tuple[bool, ...]:
        """Return, for each given argument, whether :meth:`backward` needs its values."""
        raise NotImplementedError

    def backward(
        self,
        states: Tensor,
        kept: tuple[Tensor, ...],
        given: tuple[Tensor | None, ...],
        grads: Grads,
        needed: tuple[bool, ...],
    ) -> list[Tensor | None]:
        """Return the gradients of the given arguments; None where ``needed`` is false."""
        raise NotImplementedError


def run(recurrence: Recurrence, *given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the states and the last states; the backward pass needs the states as they are.

    With ``create_graph=True``, and for a batch of gradients, the backward pass runs the recurrence
    again as a loop of torch's operations and differentiates that.
    """
    if needs_torch_operations(*given):
        return recurrence.unrolled(*given)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _Untaped.apply(recurrence, *given)  # type: ignore[no-untyped-call]
    states, final, _ = recurrence.forward(*given)
    return states, final


class _Untaped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recurrence: Recurrence, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        states, final, kept = recurrence.forward(*given)
        is_read = recurrence.which_are_read(ctx.needs_input_grad[1:], states)
        read = (t if used else None for t, used in zip(given, is_read, strict=True))
        ctx.save_for_backward(states, *read, *kept)
        # The other tensors are needed only if the loop runs again. They may change if it does not,
        # which autograd would not allow of what it saves.
        ctx.others = [
            None if used or t is None else (t, _version(t))
            for t, used in zip(given, is_read, strict=True)
        ]
        ctx.set_materialize_grads(False)
        ctx.recurrence = recurrence
        return states, final

    @staticmethod
    # Inside a compiled train step the compiler would look in here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @full_precision
    def backward(ctx: Any, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        recurrence, count = ctx.recurrence, len(ctx.others)
        states, *saved = ctx.saved_tensors
        read = tuple(saved[:count])
        # As they were made; hooks of saved tensors may have laid them out anew.
        states, *kept = (t.contiguous() for t in (states, *saved[count:]))
        grads, needed = (grad, grad_final), ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or needs_torch_operations(*grads):
            given = _all_given(recurrence.names, read, ctx.others)
            return None, *_differentiable_backward(recurrence, given, grads, needed)
        return None, *recurrence.backward(states, tuple(kept), read, grads, needed)


def _version(t: Tensor) -> int | None:
    """Return how often a tensor was changed in place, or None if torch does not count that."""
    return None if t.is_inference() else t._version


def _all_given(
    names: tuple[str, ...],
    saved: tuple[Tensor | None, ...],
    others: list[tuple[Tensor, int | None] | None],
) -> list[Tensor | None]:
    """Return the given arguments as they were in the forward pass, or raise."""
    given = []
    for name, t, other in zip(names, saved, others, strict=True):
        if other is not None:
            t, version = other
            if _version(t) != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by "
                    f"an inplace operation: {name} of a recurrent layer, of shape "
                    f"{tuple(t.shape)}, is at version {t._version}; expected version {version}. "
                    "A backward pass with create_graph=True, or of a batch of gradients, runs the "
                    "recurrence again: take it before the change, or change a copy."
                )
        given.append(t)
    return given


def _differentiable_backward(
    recurrence: Recurrence,
    given: list[Tensor | None],
    grads: Grads,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Run the loop again on a tape, and differentiate that."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # One argument may have been computed from another, as x from a weight. Of views, the
        # derivative below stops at the arguments and does not go on through that computation.
        given = [None if t is None else t.view_as(t) for t in given]
        outputs = recurrence.unrolled(*given)
    return gradients_of(given, outputs, grads, needed, create_graph=create_graph)


def gradients_of(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
    **options: bool,
) -> list[Tensor | None]:
    """Return what torch.autograd.grad does for the inputs that need it, None for all others."""
    known = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    ys, gs = [y for y, _ in known], [g for _, g in known]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(ys, wanted, gs, allow_unused=True, **options))
    return [next(found) if need else None for need in needed]
