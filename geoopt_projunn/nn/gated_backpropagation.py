"""The gradients of a gated recurrence, from its states, gates and candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .gated import GatedWeights
from .passes import Needs, Pass, Sides, rows_of
from .pointwise import pointwise_for
from .unrolled import Order, Step


def state_before(step: Step, rows: int, states: Sequence[Tensor], h0: Tensor | None) -> Tensor:
    """Return the state that each row of a step continues, given those of all times."""
    now, previous, shared = step
    if previous is not None:
        continued = rows_of(states[previous], 0, shared)
        if shared == rows:
            return continued
    if h0 is None:
        begun = states[now].new_zeros(rows - shared, states[now].shape[1])
    else:
        begun = rows_of(h0, shared, rows)
    return begun if previous is None else torch.cat([continued, begun])


class Backpropagation(Pass):
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
        self.n = n = weights.hh.shape[0]
        self.gates = parts[:, n : 3 * n].split_with_sizes(self.sizes)
        self.a, self.r, self.z, self.c = (
            part.split_with_sizes(self.sizes) for part in parts.split(n, 1)
        )
        self.pointwise = pointwise_for(nonlinearity, states, None)
        if wanted.offset:
            self.pointwise.watch_offset(states[: self.sizes[0]])

    def _open(self, chunk: list[Step], buffer: Tensor) -> Sides:
        n = self.n
        # The gradients of a, r, z and c: before their nonlinearities, as the products give them.
        whole = buffer.new_empty(buffer.shape[0], 4 * n)
        self.first, last = self._span(chunk)
        sizes = self.sizes[self.first : last + 1]
        sides = Sides(whole, whole[:, n:], whole[:, : 3 * n])
        self.to_turned = sides.h.split_with_sizes(sizes)
        self.to_gates = whole[:, n : 3 * n].split_with_sizes(sizes)
        self.to_parts = [part.split_with_sizes(sizes) for part in whole.split(n, 1)]
        return sides

    def _pull(self, run: list[Step], grads: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        (step,) = run
        now, place = step.now, step.now - self.first
        own = grads[now]
        z, c = self.z[now], self.c[now]
        to_a, to_r, to_z, to_c = (part[place] for part in self.to_parts)
        to_gates = self.to_gates[place]
        h = state_before(step, self.sizes[now], self.states_by_time, self.h0)
        torch.sub(h, c, out=to_z).mul_(own)
        past = own * z
        torch.sub(own, past, out=to_c)
        self.pointwise.backward_(to_c, c)
        torch.mul(to_c, self.a[now], out=to_r)
        torch.mul(to_c, self.r[now], out=to_a)
        torch.ops.aten.sigmoid_backward.grad_input(to_gates, self.gates[now], grad_input=to_gates)
        return self.to_turned[place], past

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
