r"""The recurrence :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})`, fast.

It runs in place, without a tape, and keeps the input and the states only: what the backward pass
needs of :math:`\varphi` is recovered from its result. Where a call must consist of torch's own
operations, :func:`~.unrolled.unrolled` runs instead.
"""

from typing import Any, ClassVar

from torch import Tensor

from . import untaped
from .backpropagation import Backpropagation
from .order import Order, rows_of
from .stepping import stepping_for
from .unrolled import Weights, unrolled


def recur(
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    *,
    nonlinearity: str,
    order: Order,
) -> tuple[Tensor, Tensor]:
    r"""Run :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})` over all time steps.

    Parameters
    ----------
    x : torch.Tensor
        (rows, m), the input, in the layout of :class:`~.order.Order`
    h0 : torch.Tensor or None
        (batch, n), the state before the first step; zero if None
    weights : Weights
        of one direction of one layer
    nonlinearity : {"modrelu", "relu", "tanh"}
        of a complex argument, relu and tanh are those of its real and imaginary parts
    order : Order
        the rows of each time step, and the direction

    Returns
    -------
    tuple of torch.Tensor
        the states (rows, n), and the last state of each sequence (batch, n). The backward pass
        needs the states: change a copy, not them.

    Notes
    -----
    The backward pass needs memory for the gradients of the states, of a long sequence an eighth
    at a time. With ``create_graph=True``, and for a batch of gradients, it runs the recurrence
    again as a loop of torch's operations and differentiates that.
    """
    return untaped.run(_Recurrence(nonlinearity, order), x, h0, *weights)


class _Recurrence(untaped.Recurrence):
    names: ClassVar[tuple[str, ...]] = ("the input", "the first state", *Weights._fields)

    def forward(self, *given: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        x, h0, *weights = given
        return *_forward(x, h0, Weights(*weights), self.nonlinearity, self.order), ()

    def unrolled(self, *given: Any) -> tuple[Tensor, Tensor]:
        x, h0, *weights = given
        return unrolled(x, h0, Weights(*weights), self.nonlinearity, self.order)

    def which_are_read(self, needed: tuple[bool, ...], states: Tensor) -> tuple[bool, ...]:
        need_x, _, *need = needed
        wanted = Weights(*need)  # type: ignore[arg-type]
        # The derivative of a complex modReLU depends on the offset, that of a real one does not.
        return bool(wanted.ih), bool(wanted.hh), need_x, True, False, False, states.is_complex()

    def backward(
        self,
        states: Tensor,
        kept: tuple[Tensor, ...],
        given: tuple[Any, ...],
        grads: untaped.Grads,
        needed: tuple[bool, ...],
    ) -> list[Tensor | None]:
        x, h0, *weights = given
        about = Weights(*weights), grads, needed, self.nonlinearity, self.order
        return Backpropagation(states, x, h0, *about).run()


def _forward(
    x: Tensor, h0: Tensor | None, weights: Weights, nonlinearity: str, order: Order
) -> tuple[Tensor, Tensor]:
    transposed = weights.hh.t()
    u = weights.project(x)
    stepping = stepping_for(nonlinearity, u, weights.hh, weights.offset, order)
    final = u.new_empty(order.batch_sizes[0], u.shape[1])
    join, before = stepping.joins, u[:0]
    pairs = zip(order.runs(join=join), order.ends(u, join=join), strict=True)
    for (shared, rows, steps), (first, last) in pairs:
        if shared > 0:
            rows_of(first, 0, shared).addmm_(rows_of(before, 0, shared), transposed)
        if shared < before.shape[0]:
            final[shared : before.shape[0]] = before[shared:]
        if h0 is not None and shared < rows:
            rows_of(first, shared, rows).addmm_(rows_of(h0, shared, rows), transposed)
        stepping.forward_(first, steps)
        before = last
    rows_of(final, 0, rows).copy_(before)
    return u, final
