r"""The recurrence :math:`h_t = \varphi(u_t + W h_{t-1})` as one differentiable function.

It runs without a tape and keeps the states only: what the backward pass needs of
:math:`\varphi` is recovered from its result. The gradient of W is one product over all steps.

Sequences lie in torch's packed layout: the rows of all sequences at the first time step, then at
the second, ... with ``batch_sizes`` rows each, not increasing. A batch of equal lengths is the
case of constant ``batch_sizes``.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pointwise import POINTWISE, ModReLU, Pointwise


def recur(
    u: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    h0: Tensor | None,
    *,
    nonlinearity: str,
    batch_sizes: list[int],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    r"""Run :math:`h_t = \varphi(u_t + W h_{t-1})` over all time steps.

    Parameters
    ----------
    u : torch.Tensor
        (sum of batch_sizes, n), the projected input; overwritten by the states
    weight : torch.Tensor
        (n, n), W
    offset : torch.Tensor or None
        (n,), real, of a modReLU
    h0 : torch.Tensor or None
        (batch_sizes[0], n), the state before the first step; zero if None
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
    First derivatives only. Besides the states no memory grows with the number of steps; the
    backward pass needs one more buffer of their size.
    """
    function = POINTWISE[nonlinearity, u.is_complex()]
    out: tuple[Tensor, Tensor] = _Recurrence.apply(  # type: ignore[no-untyped-call]
        u, weight, offset, h0, function, batch_sizes, reverse
    )
    return out


class _Step(NamedTuple):
    """One time step: ``shared`` of its rows continue the state of step ``previous``."""

    now: int
    previous: int | None
    shared: int


def _steps(batch_sizes: list[int], reverse: bool) -> Iterator[_Step]:
    previous, shared = None, 0
    times = range(len(batch_sizes))
    for now in reversed(times) if reverse else times:
        if previous is not None:
            shared = min(batch_sizes[previous], batch_sizes[now])
        yield _Step(now, previous, shared)
        previous = now


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    # A slice costs as much as a small operation.
    return x if start == 0 and stop == len(x) else x[start:stop]


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        h0: Tensor | None,
        function: type[Pointwise],
        batch_sizes: list[int],
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        pointwise = function(offset)
        transposed = weight.t()
        states = u.split(batch_sizes)
        final = u.new_empty(batch_sizes[0], u.shape[1])
        state = u
        for now, previous, shared in _steps(batch_sizes, reverse):
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
        ctx.mark_dirty(u)
        ctx.save_for_backward(u, weight, offset, h0)
        ctx.set_materialize_grads(False)
        ctx.function, ctx.batch_sizes, ctx.reverse = function, batch_sizes, reverse
        return u, final

    @staticmethod
    # Inside a compiled train step the compiler would look in here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        u, weight, offset, h0 = ctx.saved_tensors
        pointwise = ctx.function(offset)
        if isinstance(pointwise, ModReLU) and ctx.needs_input_grad[2]:
            pointwise.watch_offset(ctx.batch_sizes[0])
        conjugate = weight.conj().resolve_conj()
        # The buffer holds the gradients of the states, and of u once a step is done.
        total = (
            torch.zeros_like(u)
            if grad is None
            else grad.clone(memory_format=torch.contiguous_format)
        )
        states, grads = u.split(ctx.batch_sizes), total.split(ctx.batch_sizes)
        grad_h0 = torch.zeros_like(h0) if ctx.needs_input_grad[3] else None
        steps = list(_steps(ctx.batch_sizes, ctx.reverse))
        last = grads[steps[-1].now]
        if grad_final is not None:
            last += grad_final[: len(last)]
        for now, previous, shared in reversed(steps):
            own = grads[now]
            rows = len(own)
            pointwise.backward_(own, states[now])
            if grad_h0 is not None and shared < rows:
                torch.mm(_rows(own, shared, rows), conjugate, out=_rows(grad_h0, shared, rows))
            if previous is not None:
                before = grads[previous]
                _rows(before, 0, shared).addmm_(_rows(own, 0, shared), conjugate)
                if grad_final is not None and shared < len(before):
                    before[shared:] += grad_final[shared : len(before)]
        grad_weight = grad_offset = None
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(total, u, h0, ctx.batch_sizes, steps)
        if isinstance(pointwise, ModReLU) and ctx.needs_input_grad[2]:
            grad_offset = pointwise.offset_gradient()
        return total, grad_weight, grad_offset, grad_h0, None, None, None


def _weight_gradient(
    grad: Tensor, states: Tensor, h0: Tensor | None, batch_sizes: list[int], steps: list[_Step]
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
