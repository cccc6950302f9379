r"""The backward pass of a recurrence, from what its forward pass has left.

From the last step to the first, the gradient of :math:`h_t` becomes that of what the step adds up.
The gradients of the weights are products over many steps at once. The steps are taken in a few
chunks: only the gradients of one chunk, and of the step before it, are in memory at a time.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .unrolled import Order, Step

_MOST_CHUNKS = 8
# With fewer entries, the products of a chunk cost more than their parts of one product over all.
_LEAST_ENTRIES = 2**15


class Needs(NamedTuple):
    """Of which arguments of a recurrence a gradient is wanted."""

    x: bool
    h0: bool
    ih: bool
    hh: bool
    bias: bool


class Sides(NamedTuple):
    """The gradients that the steps of a chunk hand on."""

    whole: Tensor
    """(rows, l), whose columns are those of the other two"""
    x: Tensor
    """(rows, m_x), of what the input weights give"""
    h: Tensor
    """(rows, m_h), of what the recurrent weights give"""


class Pass:
    """One backward pass, and the gradients it has added up.

    Parameters
    ----------
    states : torch.Tensor
        (rows, n), of all steps
    x, h0 : torch.Tensor or None
        (rows, m) and (batch, n)
    ih, hh : torch.Tensor
        (m_x, m) and (m_h, n), what multiplies the input and the state before; ih is None if x
        needs no gradient
    grads : tuple of torch.Tensor or None
        of the states and of the last states
    needs : Needs
        of which arguments a gradient is wanted
    order : Order
        of the recurrence
    """

    def __init__(
        self,
        states: Tensor,
        x: Tensor | None,
        h0: Tensor | None,
        ih: Tensor | None,
        hh: Tensor,
        grads: tuple[Tensor | None, Tensor | None],
        needs: Needs,
        order: Order,
    ) -> None:
        self.states, self.x, self.h0 = states, x, h0
        self.conjugate = hh.conj().resolve_conj()
        self.grad, self.grad_final = grads
        self.needs = needs
        self.sizes = order.batch_sizes
        self.starts = [0, *accumulate(self.sizes)]
        self.steps = list(order.steps())
        self.states_by_time = states.split_with_sizes(self.sizes)
        self.grad_x = None
        if needs.x:
            assert ih is not None
            self.grad_x = states.new_empty(states.shape[0], ih.shape[1])
            self.conjugate_ih = ih.conj()
        self.grad_h0 = None
        if needs.h0:
            self.grad_h0 = states.new_zeros(self.sizes[0], states.shape[1])
        self.grad_bias: Tensor | None = None
        """The sum of all rows of what the steps hand on."""
        # Until the end, their conjugates.
        self.grad_ih: Tensor | None = None
        self.grad_hh = torch.zeros_like(hh) if needs.hh else None

    def _open(self, chunk: list[Step], buffer: Tensor) -> Sides:
        """Return where the steps of a chunk put what they hand on, given that of their states."""
        raise NotImplementedError

    def _runs(self, chunk: list[Step]) -> list[list[Step]]:
        """Return a chunk in parts, of each of which all steps are taken at once."""
        return [[step] for step in chunk]

    def _pull(self, run: list[Step], grads: dict[int, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Take the gradients of states, by time, through the steps of a run.

        Return, of its first step, its part in ``Sides.h``, and what goes to the state before it
        past the recurrent weights, if anything does. The gradients may be overwritten.
        """
        raise NotImplementedError

    def _gradients(self) -> list[Tensor | None]:
        """Return those of x, h0 and each weight, None where none is wanted."""
        raise NotImplementedError

    def run(self) -> list[Tensor | None]:
        """Go through all steps, from the last to the first, and return the gradients."""
        conjugate = self.conjugate
        chunks = self._chunks()
        buffer, buffers = self._begin(chunks[-1])
        if self.grad_final is not None:
            now = self.steps[-1].now
            buffers[now].add_(rows_of(self.grad_final, 0, self.sizes[now]))
        for number in reversed(range(len(chunks))):
            chunk = chunks[number]
            sides = self._open(chunk, buffer)
            for run in reversed(self._runs(chunk)):
                now, previous, shared = run[0]
                rows = self.sizes[now]
                turned, past = self._pull(run, buffers)
                if self.grad_h0 is not None and shared < rows:
                    out = rows_of(self.grad_h0, shared, rows)
                    torch.mm(rows_of(turned, shared, rows), conjugate, out=out)
                    if past is not None:
                        out.add_(rows_of(past, shared, rows))
                if previous is None:
                    continue
                if now == chunk[0].now:
                    buffer, buffers = self._begin(chunks[number - 1])
                before = buffers[previous]
                continued = rows_of(before, 0, shared)
                continued.addmm_(rows_of(turned, 0, shared), conjugate)
                if past is not None:
                    continued.add_(rows_of(past, 0, shared))
                ended = self.sizes[previous]
                if self.grad_final is not None and shared < ended:
                    before[shared:] += self.grad_final[shared:ended]
            self._add_products(chunk, sides)
        return self._gradients()

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

    def _add_products(self, chunk: list[Step], sides: Sides) -> None:
        """Add what the steps of a chunk contribute."""
        first, last = self._span(chunk)
        start, stop = self.starts[first], self.starts[last + 1]
        if self.grad_x is not None:
            torch.mm(sides.x, self.conjugate_ih, out=rows_of(self.grad_x, start, stop))
        if self.needs.bias:
            total = sides.whole.sum(0)
            self.grad_bias = total if self.grad_bias is None else self.grad_bias.add_(total)
        if self.needs.ih:
            assert self.x is not None
            x = rows_of(self.x, start, stop)
            if self.grad_ih is None:
                self.grad_ih = torch.mm(sides.x.mH, x)
            else:
                self.grad_ih.addmm_(sides.x.mH, x)
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
                into = rows_of(sides.h, at, at + count).mH
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
