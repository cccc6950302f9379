r"""The backward pass of a recurrence, from what its forward pass has left.

From the last step to the first, the gradient of :math:`h_t` becomes that of what the step adds up.
The gradients of the weights are products over many steps at once. The steps are taken in a few
chunks: only the gradients of one chunk are in memory at a time.
"""

from collections.abc import Iterable, Sequence
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

    joins = False
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

    def _open(self, chunk: Order, buffer: Tensor) -> tuple[Sides, Iterable[Sequence[Tensor]]]:
        """Return where the steps of a chunk put what they hand on, and what each run works on.

        ``buffer`` has the gradients of their states. The latter goes to :meth:`_pull`.
        """
        raise NotImplementedError

    def _pull(
        self, run: Run, views: Sequence[Tensor], first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Take the gradients of states through the steps of a run, given its ``views``.

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
        after = 0
        for chunk in reversed(self._chunks()):
            turned, past, after = self._through(chunk, turned, past, after)
        return self._gradients()

    def _through(
        self, chunk: Order, turned: Tensor | None, past: Tensor | None, after: int
    ) -> tuple[Tensor | None, Tensor | None, int]:
        """Go through the steps of a chunk; nothing as large as a chunk stays behind.

        ``turned`` and ``past`` are what :meth:`_pull` made of the step after the chunk, of which
        ``after`` rows continue the chunk. Return the same of the chunk's own first step.
        """
        buffer = self._begin(chunk)
        sides, views = self._open(chunk, buffer)
        runs, ends = chunk.runs(join=self.joins), chunk.ends(buffer, join=self.joins)
        for run, own, (first, last) in reversed([*zip(runs, views, ends, strict=True)]):
            shared, rows, _ = run
            if turned is not None and after > 0:
                continued = rows_of(last, 0, after)
                continued.addmm_(rows_of(turned, 0, after), self.conjugate)
                if past is not None:
                    continued.add_(rows_of(past, 0, after))
            if self.grad_final is not None and after < rows:
                last[after:] += self.grad_final[after:rows]
            turned, past = self._pull(run, own, first, last)
            if shared < rows:
                self._add_begun(turned, past, shared, rows)
            after = shared
        self._add_products(chunk, sides)
        if turned is not None and chunk.rows_before > 0:
            turned = turned.clone()  # of a view all memory would stay
        return turned, past, after

    def _chunks(self) -> list[Order]:
        count = max(1, min(_MOST_CHUNKS, self.states.numel() // _LEAST_ENTRIES))
        return self.order.chunks(count)

    def _begin(self, chunk: Order) -> Tensor:
        """Return a buffer with the gradients of the states of a chunk."""
        if self.grad is None:
            return torch.zeros_like(chunk.of(self.states))
        return chunk.of(self.grad).clone(memory_format=torch.contiguous_format)

    def _add_begun(self, turned: Tensor, past: Tensor | None, start: int, stop: int) -> None:
        """Add what goes to rows of the first state, and what these contribute to the weights."""
        begun = rows_of(turned, start, stop)
        if self.grad_h0 is not None:
            out = rows_of(self.grad_h0, start, stop)
            torch.mm(begun, self.conjugate, out=out)
            if past is not None:
                out.add_(rows_of(past, start, stop))
        if self.grad_hh is not None and self.h0 is not None:
            self.grad_hh.addmm_(begun.mH, rows_of(self.h0, start, stop))

    def _add_products(self, chunk: Order, sides: Sides) -> None:
        """Add what the steps of a chunk contribute."""
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
