r"""The gradients of a recurrence, from its states alone.

From the last step to the first, the gradient of :math:`h_t` becomes that of
:math:`z_t = W_{ih} x_t + b + W_{hh} h_{t-1}`. The gradients of the weights are products over many
steps at once. The steps are taken in a few chunks: only the gradients of one chunk, and of the
step before it, are in memory at a time.
"""

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from .pointwise import ModReLU, pointwise_for
from .unrolled import Order, Step, Weights

_MOST_CHUNKS = 8
# With fewer entries, the products of a chunk cost more than their parts of one product over all.
_LEAST_ENTRIES = 2**15


def backpropagate(
    states: Tensor,
    x: Tensor | None,
    h0: Tensor | None,
    weights: Weights,
    grads: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
    *,
    nonlinearity: str,
    order: Order,
) -> list[Tensor | None]:
    """Return the gradients of x, h0 and the weights; None where ``needed`` is false.

    Parameters
    ----------
    states : torch.Tensor
        (rows, n), of all steps
    x, h0, weights
        of the recurrence; :func:`which_are_read` says which of them may be None
    grads : tuple of torch.Tensor or None
        of the states and of the last states
    needed : tuple of bool
        for x, h0 and each of the weights
    nonlinearity, order
        of the recurrence
    """
    passes = _Pass(states, x, h0, weights, grads, needed, nonlinearity, order)
    passes.run()
    return passes.gradients()


def which_are_read(needed: tuple[bool, ...], is_complex: bool) -> tuple[bool, ...]:
    """Return, for x, h0 and each weight, whether :func:`backpropagate` needs its values."""
    need_x, _, *need = needed
    needs = Weights(*need)  # type: ignore[arg-type]
    # The derivative of a complex modReLU depends on the offset, that of a real one does not.
    return bool(needs.ih), bool(needs.hh), need_x, True, False, False, is_complex


class _Pass:
    """One backward pass, and the gradients it has added up."""

    def __init__(
        self,
        states: Tensor,
        x: Tensor | None,
        h0: Tensor | None,
        weights: Weights,
        grads: tuple[Tensor | None, Tensor | None],
        needed: tuple[bool, ...],
        nonlinearity: str,
        order: Order,
    ) -> None:
        self.states, self.x, self.h0, self.weights = states, x, h0, weights
        self.grad, self.grad_final = grads
        need_x, need_h0, *need = needed
        self.needs = Weights(*need)  # type: ignore[arg-type]
        self.sizes = order.batch_sizes
        self.starts = [0, *accumulate(self.sizes)]
        self.steps = list(order.steps())
        self.pointwise = pointwise_for(nonlinearity, states, weights.offset)
        self.grad_x = None
        if need_x:
            assert weights.ih is not None
            self.grad_x = states.new_empty(states.shape[0], weights.ih.shape[1])
            self.conjugate_ih = weights.ih.conj()
        self.grad_h0 = None
        if need_h0:
            self.grad_h0 = states.new_zeros(self.sizes[0], states.shape[1])
        self.grad_bias: Tensor | None = None
        # Until the end, their conjugates.
        self.grad_ih: Tensor | None = None
        self.grad_hh = torch.zeros_like(weights.hh) if self.needs.hh else None
        if isinstance(self.pointwise, ModReLU) and self.needs.offset:
            self.pointwise.watch_offset(states[: self.sizes[0]])

    def run(self) -> None:
        """Go through all steps, from the last to the first."""
        conjugate = self.weights.hh.conj().resolve_conj()
        states = self.states.split_with_sizes(self.sizes)
        chunks = self._chunks()
        buffer, buffers = self._begin(chunks[-1])
        if self.grad_final is not None:
            now = self.steps[-1].now
            buffers[now].add_(rows_of(self.grad_final, 0, self.sizes[now]))
        for number in reversed(range(len(chunks))):
            chunk, current = chunks[number], buffer
            for now, previous, shared in reversed(chunk):
                own = buffers[now]
                rows = self.sizes[now]
                self.pointwise.backward_(own, states[now])
                if self.grad_h0 is not None and shared < rows:
                    out = rows_of(self.grad_h0, shared, rows)
                    torch.mm(rows_of(own, shared, rows), conjugate, out=out)
                if previous is None:
                    continue
                if now == chunk[0].now:
                    buffer, buffers = self._begin(chunks[number - 1])
                before = buffers[previous]
                rows_of(before, 0, shared).addmm_(rows_of(own, 0, shared), conjugate)
                ended = self.sizes[previous]
                if self.grad_final is not None and shared < ended:
                    before[shared:] += self.grad_final[shared:ended]
            self._add_products(chunk, current)

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients in the order of the arguments."""
        of_offset = None
        if isinstance(self.pointwise, ModReLU) and self.needs.offset:
            of_offset = self.pointwise.offset_gradient()
        return [
            self.grad_x,
            self.grad_h0,
            None if self.grad_ih is None else self.grad_ih.conj().resolve_conj(),
            None if self.grad_hh is None else self.grad_hh.conj().resolve_conj(),
            self.grad_bias if self.needs.bias_ih else None,
            self.grad_bias if self.needs.bias_hh else None,
            of_offset,
        ]

    def _chunks(self) -> list[list[Step]]:
        count = len(self.steps)
        chunks = max(1, min(_MOST_CHUNKS, self.states.numel() // _LEAST_ENTRIES))
        size = -(-count // chunks)
        return [self.steps[start : start + size] for start in range(0, count, size)]

    def _span(self, chunk: list[Step]) -> tuple[int, int]:
        """Return the first and the last time step of a chunk."""
        first, last = sorted((chunk[0].now, chunk[-1].now))
        return first, last

    def _begin(self, chunk: list[Step]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return a buffer with the gradients of the states of a chunk, whole and by step."""
        first, last = self._span(chunk)
        start, stop = self.starts[first], self.starts[last + 1]
        if self.grad is None:
            buffer = torch.zeros_like(rows_of(self.states, start, stop))
        else:
            given = rows_of(self.grad, start, stop)
            buffer = given.clone(memory_format=torch.contiguous_format)
        parts = buffer.split_with_sizes(self.sizes[first : last + 1])
        return buffer, dict(enumerate(parts, first))

    def _add_products(self, chunk: list[Step], buffer: Tensor) -> None:
        """Add what the steps of a chunk contribute, given the gradients of their z_t."""
        first, last = self._span(chunk)
        start, stop = self.starts[first], self.starts[last + 1]
        if self.grad_x is not None:
            torch.mm(buffer, self.conjugate_ih, out=rows_of(self.grad_x, start, stop))
        if self.needs.bias_ih or self.needs.bias_hh:
            total = buffer.sum(0)
            self.grad_bias = total if self.grad_bias is None else self.grad_bias.add_(total)
        if self.needs.ih:
            assert self.x is not None
            x = rows_of(self.x, start, stop)
            if self.grad_ih is None:
                self.grad_ih = torch.mm(buffer.mH, x)
            else:
                self.grad_ih.addmm_(buffer.mH, x)
        if self.grad_hh is None:
            return
        # (place in the buffer, place in the source, count)
        continued, begun = [], []
        for now, previous, shared in chunk:
            at, rows = self.starts[now] - start, self.sizes[now]
            if previous is not None:
                continued.append((at, self.starts[previous], shared))
            if self.h0 is not None and shared < rows:
                begun.append((at + shared, shared, rows - shared))
        if chunk[0].now > chunk[-1].now:
            continued.reverse()
        for source, runs in ((self.states, continued), (self.h0, begun)):
            for at, origin, count in _merged(runs):
                assert source is not None
                into = rows_of(buffer, at, at + count).mH
                self.grad_hh.addmm_(into, rows_of(source, origin, origin + count))


def rows_of(x: Tensor, start: int, stop: int) -> Tensor:
    """Return x[start:stop]; a slice costs as much as a small operation."""
    return x if start == 0 and stop == x.shape[0] else x[start:stop]


def _merged(runs: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Join (place, origin, count) that follow each other in both places."""
    current: tuple[int, int, int] | None = None
    for at, origin, count in runs:
        if current is not None and (at, origin) == (
            current[0] + current[2],
            current[1] + current[2],
        ):
            current = (current[0], current[1], current[2] + count)
            continue
        if current is not None:
            yield current
        current = (at, origin, count)
    if current is not None:
        yield current
