r"""The recurrence :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})` as a loop of operations.

It consists of torch's own operations: autograd, torch.func, torch.export and others take it as
they take any function. Autograd keeps what each of the operations needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..activation import activated
from .order import Order


class Weights(NamedTuple):
    """The parameters of one direction of one layer, n features out of m."""

    ih: Tensor
    """(n, m)"""
    hh: Tensor
    """(n, n)"""
    bias_ih: Tensor | None
    """(n,)"""
    bias_hh: Tensor | None
    """(n,)"""
    offset: Tensor | None
    """(n,), real, of a modReLU"""

    def project(self, x: Tensor) -> Tensor:
        """Return what the recurrence adds at every step, (rows, n), for x (rows, m)."""
        return torch.nn.functional.linear(x, self.ih, self._bias())

    def _bias(self) -> Tensor | None:
        # A user may have removed one of them.
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        return self.bias_ih + self.bias_hh


def unrolled(
    x: Tensor, h0: Tensor | None, weights: Weights, nonlinearity: str, order: Order
) -> tuple[Tensor, Tensor]:
    """Return all states, and the last state of each sequence, as :func:`~.recurrence.recur`."""
    transposed = weights.hh.t()

    # In quotes: torch 2.8 exports no function that makes a union of types.
    def step(u: Tensor, h: "Tensor | None") -> Tensor:
        z = u if h is None else torch.addmm(u, h, transposed)
        return activated(z, nonlinearity, weights.offset)

    return unroll(weights.project(x), h0, step, order)


def unroll(
    u: Tensor,
    h0: Tensor | None,
    step: Callable[[Tensor, Tensor | None], Tensor],
    order: Order,
) -> tuple[Tensor, Tensor]:
    """Apply a step at all times; return all states, and the last state of each sequence.

    Parameters
    ----------
    u : torch.Tensor
        (rows, m), what the step adds at each time
    h0 : torch.Tensor or None
        (batch, n), the state before the first step
    step : callable
        makes the state (rows, n) of its part of ``u`` and the state before it, which is None at
        the beginning of a sequence if ``h0`` is
    order : Order
        the rows of each time step, and the direction
    """
    states: list[Tensor] = []
    ended = []
    state = u
    for (shared, rows, _), given in zip(order.runs(), order.split(u), strict=True):
        parts = []
        if states:
            parts.append(step(given[:shared], state[:shared]))
            if shared < state.shape[0]:
                ended.append(state[shared:])
        if not states or shared < rows:
            parts.append(step(given[shared:], None if h0 is None else h0[shared:rows]))
        state = parts[0] if len(parts) == 1 else torch.cat(parts)
        states.append(state)
    # The shortest sequences, which end first, are the last rows.
    final = torch.cat([state, *reversed(ended)])
    return torch.cat([*order.as_taken(states)]), final
