r"""The recurrence :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})`, fast.

It runs in place, without a tape, and keeps the input and the states only: what the backward pass
needs of :math:`\varphi` is recovered from its result. Where a call must consist of torch's own
operations, :func:`~.unrolled.unrolled` runs instead.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..linalg.precision import full_precision
from .backpropagation import backpropagate, rows_of, which_are_read
from .pointwise import pointwise_for
from .transforms import needs_plain_operations
from .unrolled import Order, Weights, unrolled


def recur(
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    *,
    nonlinearity: str,
    batch_sizes: list[int],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    r"""Run :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})` over all time steps.

    Parameters
    ----------
    x : torch.Tensor
        (sum of batch_sizes, m), the input
    h0 : torch.Tensor or None
        (batch_sizes[0], n), the state before the first step; zero if None
    weights : Weights
        of one direction of one layer
    nonlinearity : {"modrelu", "relu", "tanh"}
        of a complex argument, relu and tanh are those of its real and imaginary parts
    batch_sizes : list of int
        rows of each time step, not increasing
    reverse : bool
        from the last step to the first

    Returns
    -------
    tuple of torch.Tensor
        the states (sum of batch_sizes, n), and the last state of each sequence
        (batch_sizes[0], n). The backward pass needs the states: change a copy, not them.

    Notes
    -----
    The backward pass needs memory for the gradients of the states, of a long sequence a quarter
    at a time. With ``create_graph=True``, and for a batch of gradients, it runs the recurrence
    again as a loop of torch's operations and differentiates that.
    """
    order = Order(batch_sizes, reverse)
    given = (x, h0, *weights)
    if needs_plain_operations(*given):
        return unrolled(x, h0, weights, nonlinearity, order)
    run = _Run(nonlinearity, order)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _Recurrence.apply(run, *given)  # type: ignore[no-untyped-call]
    return _forward(run, x, h0, weights)


class _Run(NamedTuple):
    nonlinearity: str
    order: Order


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        x, h0, *weights = given
        assert x is not None
        states, final = _forward(run, x, h0, Weights(*weights))  # type: ignore[arg-type]
        is_read = which_are_read(ctx.needs_input_grad[1:], states.is_complex())
        ctx.save_for_backward(
            states, *(t if used else None for t, used in zip(given, is_read, strict=True))
        )
        # The other tensors are needed only if the loop runs again. They may change if it does not,
        # which autograd would not allow of what it saves.
        ctx.others = [
            None if used or t is None else (t, _version(t))
            for t, used in zip(given, is_read, strict=True)
        ]
        ctx.set_materialize_grads(False)
        ctx.run = run
        return states, final

    @staticmethod
    # Inside a compiled train step the compiler would look in here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @full_precision
    def backward(ctx: Any, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        states, x, h0, *weights = ctx.saved_tensors
        run, grads, needed = ctx.run, (grad, grad_final), ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or needs_plain_operations(*grads):
            given = _all_given((x, h0, *weights), ctx.others)
            return None, *_differentiable_backward(run, given, grads, needed)
        return None, *backpropagate(
            *(states, x, h0, Weights(*weights), grads, needed),
            nonlinearity=run.nonlinearity,
            order=run.order,
        )


def _version(t: Tensor) -> int | None:
    """Return how often a tensor was changed in place, or None if torch does not count that."""
    return None if t.is_inference() else t._version


def _all_given(
    saved: tuple[Tensor | None, ...], others: list[tuple[Tensor, int | None] | None]
) -> list[Tensor | None]:
    """Return x, h0 and the weights as they were in the forward pass, or raise."""
    given = []
    names = ("the input", "the first state", *Weights._fields)
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


def _forward(run: _Run, x: Tensor, h0: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
    transposed = weights.hh.t()
    u = weights.project(x)
    pointwise = pointwise_for(run.nonlinearity, u, weights.offset)
    sizes = run.order.batch_sizes
    states = u.split_with_sizes(sizes)
    final = u.new_empty(sizes[0], u.shape[1])
    for now, previous, shared in run.order.steps():
        state, rows = states[now], sizes[now]
        if previous is not None:
            before, ended = states[previous], sizes[previous]
            rows_of(state, 0, shared).addmm_(rows_of(before, 0, shared), transposed)
            if shared < ended:
                final[shared:ended] = before[shared:]
        if h0 is not None and shared < rows:
            rows_of(state, shared, rows).addmm_(rows_of(h0, shared, rows), transposed)
        pointwise.forward_(state)
    rows_of(final, 0, rows).copy_(state)
    return u, final


def _differentiable_backward(
    run: _Run,
    given: list[Tensor | None],
    grads: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Run the loop again on a tape, and differentiate that."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # One argument may have been computed from another, as x from a weight. Of views, the
        # derivative below stops at the arguments and does not go on through that computation.
        x, h0, *weights = (None if t is None else t.view_as(t) for t in given)
        assert x is not None
        outputs = unrolled(x, h0, Weights(*weights), run.nonlinearity, run.order)  # type: ignore[arg-type]
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [
        t for t, need in zip((x, h0, *weights), needed, strict=True) if need and t is not None
    ]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            wanted,
            [g for _, g in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if need else None for need in needed]
