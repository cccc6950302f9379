r"""The backward pass of a recurrence, from what its forward pass has left.

From the last step to the first, the gradient of :math:`h_t` becomes that of what the step adds up.
The gradients of the weights are products over many steps at once. The steps are taken in a few
chunks: only the gradients of one chunk, and of the step before it, are in memory at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .order import Order, Run, rows_of

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

    join = False
    """Whether a run may be of many steps."""

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
        self.order = order
        self.grad_x = None
        if needs.x:
            assert ih is not None
            self.grad_x = states.new_empty(states.shape[0], ih.shape[1])
            self.conjugate_ih = ih.conj()
        self.grad_h0 = None
        if needs.h0:
            self.grad_h0 = states.new_zeros(order.batch_sizes[0], states.shape[1])
        self.grad_bias: Tensor | None = None
        """The sum of all rows of what the steps hand on."""
        # Until the end, their conjugates.
        self.grad_ih: Tensor | None = None
        self.grad_hh = torch.zeros_like(hh) if needs.hh else None

    def _open(self, chunk: Order, buffer: Tensor) -> Sides:
        """Return where the steps of a chunk put what they hand on, given that of their states."""
        raise NotImplementedError

    def _pull(
        self, place: int, run: Run, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Take the gradients of states through the steps of a run, given its place in the chunk.

        Of those, ``first`` and ``last`` are of its first and its last step, others lie between.
        They may be overwritten. Return, of the first step, its part in ``Sides.h``, and what goes
        to the state before it past the recurrent weights, if anything does.
        """
        raise NotImplementedError

    def _gradients(self) -> list[Tensor | None]:
        """Return those of x, h0 and each weight, None where none is wanted."""
        raise NotImplementedError

    def run(self) -> list[Tensor | None]:
        """Go through all steps, from the last to the first, and return the gradients."""
        turned = past = None
        after = 0  # rows of a run that the step after it continues
        for chunk in reversed(self._chunks()):
            buffer = self._begin(chunk)
            sides, begun = self._open(chunk, buffer), []
            runs, grads = chunk.runs(join=self.join), chunk.ends(buffer, join=self.join)
            for place in reversed(range(len(runs))):
                shared, rows, _ = run = runs[place]
                first, last = grads[place]
                if turned is not None and after > 0:
                    continued = rows_of(last, 0, after)
                    continued.addmm_(rows_of(turned, 0, after), self.conjugate)
                    if past is not None:
                        continued.add_(rows_of(past, 0, after))
                if self.grad_final is not None and after < rows:
                    last[after:] += self.grad_final[after:rows]
                turned, past = self._pull(place, run, first, last)
                if self.grad_h0 is not None and shared < rows:
                    out = rows_of(self.grad_h0, shared, rows)
                    torch.mm(rows_of(turned, shared, rows), self.conjugate, out=out)
                    if past is not None:
                        out.add_(rows_of(past, shared, rows))
                if self.h0 is not None and shared < rows:
                    begun.append((rows_of(turned, shared, rows), rows_of(self.h0, shared, rows)))
                after = shared
            self._add_products(chunk, sides, begun)
        return self._gradients()

    def _chunks(self) -> list[Order]:
        count = max(1, min(_MOST_CHUNKS, self.states.numel() // _LEAST_ENTRIES))
        return self.order.chunks(count)

    def _begin(self, chunk: Order) -> Tensor:
        """Return a buffer with the gradients of the states of a chunk."""
        if self.grad is None:
            return torch.zeros_like(chunk.of(self.states))
        return chunk.of(self.grad).clone(memory_format=torch.contiguous_format)

    def _add_products(self, chunk: Order, sides: Sides, begun: list[tuple[Tensor, Tensor]]) -> None:
        """Add what the steps of a chunk contribute.

        ``begun`` are pairs of what goes to rows of the first state, and these.
        """
        if self.grad_x is not None:
            torch.mm(sides.x, self.conjugate_ih, out=chunk.of(self.grad_x))
        if self.needs.bias:
            total = sides.whole.sum(0)
            self.grad_bias = total if self.grad_bias is None else self.grad_bias.add_(total)
        if self.needs.ih:
            assert self.x is not None
            x = chunk.of(self.x)
            if self.grad_ih is None:
                self.grad_ih = torch.mm(sides.x.mH, x)
            else:
                self.grad_ih.addmm_(sides.x.mH, x)
        if self.grad_hh is None:
            return
        for at, other, count in chunk.continued():
            before = rows_of(self.states, other, other + count)
            self.grad_hh.addmm_(rows_of(sides.h, at, at + count).mH, before)
        for turned, h0 in reversed(begun):
            self.grad_hh.addmm_(turned.mH, h0)
