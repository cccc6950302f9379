r"""The recurrence :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})`, fast.

It runs in place, without a tape, and keeps the input and the states only: what the backward pass
needs of :math:`\varphi` is recovered from its result. The gradient of a weight is one product over
all steps. Where this does not serve, :func:`~.unrolled.unrolled` does.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..linalg.precision import full_precision
from .pointwise import POINTWISE, ModReLU
from .transforms import transformed
from .unrolled import Order, Step, Weights, unrolled


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
        (batch_sizes[0], n)

    Notes
    -----
    Besides the states no memory grows with the number of steps; the backward pass needs one more
    buffer of their size. If the states have been changed in place by then, it computes them
    again. With ``create_graph=True``, and for a batch of gradients, it differentiates the
    unrolled loop instead.
    """
    order = Order(batch_sizes, reverse)
    if transformed(x, h0, *weights):
        return unrolled(x, h0, weights, nonlinearity, order)
    run = _Run(nonlinearity, order)
    computed: tuple[Tensor, Tensor] = _Recurrence.apply(run, x, h0, *weights)  # type: ignore[no-untyped-call]
    if not computed[0].requires_grad:
        return computed
    out: tuple[Tensor, Tensor] = _States.apply(run, *computed)  # type: ignore[no-untyped-call]
    run.version = out[0]._version
    return out


class _Run:
    """What the two nodes of one call share; ``states`` within one backward pass."""

    def __init__(self, nonlinearity: str, order: Order) -> None:
        self.nonlinearity = nonlinearity
        self.order = order
        self.version = 0
        self.states: Tensor | None = None


class _States(torch.autograd.Function):
    """Keep the states for the backward pass, apart from what they were computed from.

    Users may change them in place. Of what a node has kept torch then gives nothing back.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, states: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        ctx.mark_dirty(states, final)
        ctx.save_for_backward(states)
        ctx.set_materialize_grads(False)
        ctx.run = run
        return states, final

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad: Tensor | None, grad_final: Tensor | None
    ) -> tuple[None, Tensor | None, Tensor | None]:
        ctx.run.states = None
        # Whatever else this may raise, as in a second backward pass, the other node raises too.
        with suppress(RuntimeError):
            (states,) = ctx.saved_tensors
            # Torch does not look where torch.autograd.graph.saved_tensors_hooks are at work; what
            # these return may be a new copy.
            if states._version in (0, ctx.run.version):
                ctx.run.states = states
        return None, grad, grad_final


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Run, x: Tensor, h0: Tensor | None, *weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, h0, *weights)
        ctx.set_materialize_grads(False)
        ctx.run = run
        return _forward(run, x, h0, Weights(*weights))  # type: ignore[arg-type]

    @staticmethod
    # Inside a compiled train step the compiler would look in here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @full_precision
    def backward(ctx: Any, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        x, h0, *rest = ctx.saved_tensors
        weights, states, ctx.run.states = Weights(*rest), ctx.run.states, None
        arguments = (ctx.run, x, h0, weights, (grad, grad_final), ctx.needs_input_grad[1:])
        if torch.is_grad_enabled() or transformed(x, h0, *weights, grad, grad_final):
            return None, *_differentiable_backward(*arguments)
        if states is None:
            states, _ = _forward(ctx.run, x, h0, weights)
        return None, *_backward(*arguments, states)


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    # A slice costs as much as a small operation.
    return x if start == 0 and stop == len(x) else x[start:stop]


def _forward(run: _Run, x: Tensor, h0: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
    pointwise = POINTWISE[run.nonlinearity, x.is_complex()](weights.offset)
    transposed = weights.hh.t()
    u = weights.project(x)
    states = u.split(run.order.batch_sizes)
    final = u.new_empty(run.order.batch_sizes[0], u.shape[1])
    state = u
    for now, previous, shared in run.order.steps():
        state = states[now]
        rows = len(state)
        if previous is not None:
            before = states[previous]
            _rows(state, 0, shared).addmm_(_rows(before, 0, shared), transposed)
            if shared < len(before):
                final[shared : len(before)] = before[shared:]
        if h0 is not None and shared < rows:
            _rows(state, shared, rows).addmm_(_rows(h0, shared, rows), transposed)
        pointwise.forward_(state)
    final[: len(state)] = state
    return u, final


def _backward(
    run: _Run,
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    grads: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
    u: Tensor,
) -> list[Tensor | None]:
    grad, grad_final = grads
    need_x, need_h0, *need = needed
    needs = Weights(*need)  # type: ignore[arg-type]
    pointwise = POINTWISE[run.nonlinearity, x.is_complex()](weights.offset)
    if isinstance(pointwise, ModReLU) and needs.offset:
        pointwise.watch_offset(run.order.batch_sizes[0])
    conjugate = weights.hh.conj().resolve_conj()
    # The buffer holds the gradients of the states, and of the projected input once a step is done.
    total = (
        torch.zeros_like(u) if grad is None else grad.clone(memory_format=torch.contiguous_format)
    )
    states, buffers = u.split(run.order.batch_sizes), total.split(run.order.batch_sizes)
    grad_h0 = torch.zeros_like(h0) if need_h0 and h0 is not None else None
    steps = list(run.order.steps())
    last = buffers[steps[-1].now]
    if grad_final is not None:
        last += grad_final[: len(last)]
    for now, previous, shared in reversed(steps):
        own = buffers[now]
        rows = len(own)
        pointwise.backward_(own, states[now])
        if grad_h0 is not None and shared < rows:
            torch.mm(_rows(own, shared, rows), conjugate, out=_rows(grad_h0, shared, rows))
        if previous is not None:
            before = buffers[previous]
            _rows(before, 0, shared).addmm_(_rows(own, 0, shared), conjugate)
            if grad_final is not None and shared < len(before):
                before[shared:] += grad_final[shared : len(before)]
    grad_bias = total.sum(0) if needs.bias_ih or needs.bias_hh else None
    return [
        total @ weights.ih.conj() if need_x else None,
        grad_h0,
        torch.mm(total.mH, x).conj().resolve_conj() if needs.ih else None,
        _weight_gradient(total, u, h0, run.order.batch_sizes, steps) if needs.hh else None,
        grad_bias if needs.bias_ih else None,
        grad_bias if needs.bias_hh else None,
        pointwise.offset_gradient() if isinstance(pointwise, ModReLU) and needs.offset else None,
    ]


def _differentiable_backward(
    run: _Run,
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    grads: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Run the loop again on a tape, and differentiate that."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of an input that depends on another one, the derivative stops here.
        new = [None if t is None else t.view_as(t) for t in (x, h0, *weights)]
        outputs = unrolled(new[0], new[1], Weights(*new[2:]), run.nonlinearity, run.order)  # type: ignore[arg-type]
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [t for t, need in zip(new, needed, strict=True) if need and t is not None]
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


def _weight_gradient(
    grad: Tensor, states: Tensor, h0: Tensor | None, batch_sizes: list[int], steps: list[Step]
) -> Tensor:
    """Return the sum over all steps of grad_tᵀ conj(h_{t-1}), in as few products as possible."""
    starts = [0]
    for size in batch_sizes:
        starts.append(starts[-1] + size)
    continued, begun = [], []
    for now, previous, shared in sorted(steps):
        if previous is not None:
            continued.append((starts[now], starts[previous], shared))
        if h0 is not None and shared < batch_sizes[now]:
            begun.append((starts[now] + shared, shared, batch_sizes[now] - shared))
    total = torch.zeros(states.shape[1], states.shape[1], dtype=grad.dtype, device=grad.device)
    for source, runs in ((states, continued), (h0, begun)):
        for start, origin, count in _merged(runs):
            assert source is not None
            total.addmm_(grad[start : start + count].mH, source[origin : origin + count])
    return total.conj().resolve_conj()


def _merged(runs: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Join (start, origin, count) that follow each other in both places."""
    current: tuple[int, int, int] | None = None
    for start, origin, count in runs:
        if current is not None and (start, origin) == (
            current[0] + current[2],
            current[1] + current[2],
        ):
            current = (current[0], current[1], current[2] + count)
            continue
        if current is not None:
            yield current
        current = (start, origin, count)
    if current is not None:
        yield current
