"""The gradients of a gated recurrence, from its states, gates and candidates."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .gated import GatedWeights
from .order import Order, Run, rows_of
from .passes import Needs, Pass, Sides
from .pointwise import pointwise_for


def state_before(run: Run, before: Tensor, h0: Tensor | None) -> Tensor:
    """Return the state that each row of a step continues, given those of the step before."""
    shared, rows, _ = run
    continued = rows_of(before, 0, shared)
    if shared == rows:
        return continued
    if h0 is None:
        begun = before.new_zeros(rows - shared, before.shape[1])
    else:
        begun = rows_of(h0, shared, rows)
    return torch.cat([continued, begun]) if shared > 0 else begun


class GatedBackpropagation(Pass):
    """The backward pass of x, h0 and the weights.

    ``needed`` says for each of these whether its gradient is wanted. ``parts`` are (rows, 4n):
    a = U h + b', r, z and the candidate c side by side.
    """

    def __init__(
        self,
        states: Tensor,
        parts: Tensor,
        x: Tensor | None,
        h0: Tensor | None,
        weights: GatedWeights,
        grads: tuple[Tensor | None, Tensor | None],
        needed: tuple[bool, ...],
        nonlinearity: str,
        order: Order,
    ) -> None:
        need_x, need_h0, *need = needed
        self.wanted = wanted = GatedWeights(*need)  # type: ignore[arg-type]
        needs = Needs(
            need_x,
            need_h0,
            bool(wanted.ih),
            bool(wanted.hh or wanted.gates),
            bool(wanted.bias_ih or wanted.bias_hh),
        )
        turn = torch.cat([weights.hh, weights.gates])
        super().__init__(states, x, h0, weights.ih, turn, grads, needs, order)
        self.n = weights.hh.shape[0]
        self.parts = parts
        self.pointwise = pointwise_for(nonlinearity, states, None)
        if wanted.offset:
            self.pointwise.watch_offset(states[: order.batch_sizes[0]])

    def _open(self, chunk: Order, buffer: Tensor) -> tuple[Sides, Iterable[Sequence[Tensor]]]:
        n = self.n
        # The gradients of a, r, z and c: before their nonlinearities, as the products give them.
        whole, parts = buffer.new_empty(buffer.shape[0], 4 * n), chunk.of(self.parts)
        sides = Sides(whole, whole[:, n:], whole[:, : 3 * n])
        of_gates = (t[:, n : 3 * n] for t in (whole, parts))
        by_step = (sides.h, *of_gates, *whole.split(n, 1), *parts.split(n, 1))
        *before, _ = chunk.previous(self.states), *chunk.split(chunk.of(self.states))
        return sides, zip(before, *map(chunk.split, by_step), strict=True)

    def _pull(
        self, run: Run, views: Sequence[Tensor], first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        before, to_turned, to_gates, gates, to_a, to_r, to_z, to_c, a, r, z, c = views
        h = state_before(run, before, self.h0)
        torch.sub(h, c, out=to_z).mul_(last)
        past = last * z
        torch.sub(last, past, out=to_c)
        self.pointwise.backward_(to_c, c)
        torch.mul(to_c, a, out=to_r)
        torch.mul(to_c, r, out=to_a)
        torch.ops.aten.sigmoid_backward.grad_input(to_gates, gates, grad_input=to_gates)
        return to_turned, past

    def _gradients(self) -> list[Tensor | None]:
        wanted, n = self.wanted, self.n
        of_hh = of_gates = of_bias_ih = of_bias_hh = None
        if self.grad_hh is not None:
            # Not two views of one tensor, which optimizers would take for shared memory.
            of_hh, of_gates = (part.clone() for part in self.grad_hh.split([n, 2 * n]))
        if self.grad_bias is not None:
            of_bias_ih = self.grad_bias[n:]
            of_bias_hh = self.grad_bias[: 3 * n].roll(-n)
        return [
            self.grad_x,
            self.grad_h0,
            self.grad_ih,
            of_hh if wanted.hh else None,
            of_gates if wanted.gates else None,
            of_bias_ih if wanted.bias_ih else None,
            of_bias_hh if wanted.bias_hh else None,
            self.pointwise.offset_gradient(),
        ]
