"""The recurrence of a gated recurrent unit, fast.

It runs in place, without a tape. For the backward pass it keeps the input, the states, and of each
step the two gates, the candidate and what the reset gate multiplies: five numbers for each
feature of the state. What that pass needs of the nonlinearity is recovered from the candidate.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from . import untaped
from .gated import GatedWeights, unrolled_gates
from .gated_backpropagation import GatedBackpropagation, state_before
from .order import Order, rows_of
from .pointwise import pointwise_for


def recur(
    x: Tensor, h0: Tensor | None, weights: GatedWeights, *, nonlinearity: str, order: Order
) -> tuple[Tensor, Tensor]:
    """Run :func:`~.gated.gated_step` over all time steps, with real weights.

    Arguments and results are those of :func:`.recurrence.recur`.
    """
    return untaped.run(_Recurrence(nonlinearity, order), x, h0, *weights)


class _Recurrence(untaped.Recurrence):
    names: ClassVar[tuple[str, ...]] = ("the input", "the first state", *GatedWeights._fields)

    def forward(self, *given: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        x, h0, *weights = given
        states, final, parts = _forward(
            x, h0, GatedWeights(*weights), self.nonlinearity, self.order
        )
        return states, final, (parts,)

    def unrolled(self, *given: Any) -> tuple[Tensor, Tensor]:
        x, h0, *weights = given
        return unrolled_gates(x, h0, GatedWeights(*weights), self.nonlinearity, self.order)

    def which_are_read(self, needed: tuple[bool, ...], states: Tensor) -> tuple[bool, ...]:
        need_x, _, *need = needed
        wanted = GatedWeights(*need)  # type: ignore[arg-type]
        return bool(wanted.ih), True, need_x, True, True, False, False, False

    def backward(
        self,
        states: Tensor,
        kept: tuple[Tensor, ...],
        given: tuple[Any, ...],
        grads: untaped.Grads,
        needed: tuple[bool, ...],
    ) -> list[Tensor | None]:
        (parts,), (x, h0, *weights) = kept, given
        about = GatedWeights(*weights), grads, needed, self.nonlinearity, self.order
        return GatedBackpropagation(states, parts, x, h0, *about).run()


def _forward(
    x: Tensor, h0: Tensor | None, weights: GatedWeights, nonlinearity: str, order: Order
) -> tuple[Tensor, Tensor, Tensor]:
    """Return all states, the last states, and (rows, 4n): a = U h + b', r, z and c side by side."""
    pointwise = pointwise_for(nonlinearity, x, weights.offset)
    n = weights.hh.shape[0]
    parts = _begun(x, weights)
    # a, r and z are one product.
    turn = torch.cat([weights.hh, weights.gates]).t()
    states = x.new_empty(x.shape[0], n)
    final = x.new_empty(order.batch_sizes[0], n)
    views = (parts[:, : 3 * n], parts[:, n : 3 * n], *parts.split(n, 1), states)
    before = states[:0]
    for run, *own in zip(order.runs(), *map(order.split, views), strict=True):
        turned, gates, a, r, z, c, state = own
        h = state_before(run, before, h0)
        if run.shared < before.shape[0]:
            final[run.shared : before.shape[0]] = before[run.shared :]
        turned.addmm_(h, turn)
        gates.sigmoid_()
        pointwise.forward_(c.addcmul_(r, a))
        before = torch.lerp(c, h, z, out=state)
    rows_of(final, 0, run.rows).copy_(before)
    return states, final, parts


def _begun(x: Tensor, weights: GatedWeights) -> Tensor:
    """Return what the input and the biases contribute to a, r, z and c."""
    n = weights.hh.shape[0]
    parts = x.new_empty(x.shape[0], 4 * n)
    a, given = parts[:, :n], parts[:, n:]
    if weights.bias_ih is None and weights.bias_hh is None:
        a.zero_()
        torch.mm(x, weights.ih.t(), out=given)
        return parts
    # A user may have removed one of them.
    bias = x.new_zeros(3 * n) if weights.bias_ih is None else weights.bias_ih.clone()
    if weights.bias_hh is None:
        a.zero_()
    else:
        a.copy_(weights.bias_hh[2 * n :])
        bias[: 2 * n] += weights.bias_hh[: 2 * n]
    torch.addmm(bias, x, weights.ih.t(), out=given)
    return parts
