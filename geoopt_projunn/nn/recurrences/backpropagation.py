r"""The gradients of :math:`h_t = \varphi(W_{ih} x_t + b + W_{hh} h_{t-1})`, from its states alone.

From the last step to the first, the gradient of :math:`h_t` becomes that of
:math:`z_t = W_{ih} x_t + b + W_{hh} h_{t-1}`.
"""

from collections.abc import Sequence

from torch import Tensor

from .order import Order, Run
from .passes import Needs, Pass, Sides
from .stepping import stepping_for
from .unrolled import Weights


class Backpropagation(Pass):
    """The backward pass of x, h0 and the weights: the gradient of h_t becomes that of z_t in place.

    ``needed`` says for each of these whether its gradient is wanted.
    """

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
        need_x, need_h0, *need = needed
        self.wanted = wanted = Weights(*need)  # type: ignore[arg-type]
        needs = Needs(
            need_x,
            need_h0,
            bool(wanted.ih),
            bool(wanted.hh),
            bool(wanted.bias_ih or wanted.bias_hh),
        )
        super().__init__(states, x, h0, weights.ih, weights.hh, grads, needs, order)
        self.stepping = stepping_for(
            nonlinearity, states, self.conjugate.t(), weights.offset, order
        )
        self.joins = self.stepping.joins
        self.pointwise = self.stepping.pointwise
        if wanted.offset:
            self.pointwise.watch_offset(states[: order.batch_sizes[0]])

    def _open(self, chunk: Order, buffer: Tensor) -> tuple[Sides, Sequence[Sequence[Tensor]]]:
        states = chunk.ends(chunk.of(self.states), join=self.joins)
        return Sides(buffer, buffer, buffer), states

    def _pull(
        self, run: Run, views: Sequence[Tensor], first: Tensor, last: Tensor
    ) -> tuple[Tensor, None]:
        _, states = views
        self.stepping.backward_(last, states, run.steps)
        return first, None

    def _gradients(self) -> list[Tensor | None]:
        return [
            self.grad_x,
            self.grad_h0,
            None if self.grad_ih is None else self.grad_ih.conj().resolve_conj(),
            None if self.grad_hh is None else self.grad_hh.conj().resolve_conj(),
            self.grad_bias if self.wanted.bias_ih else None,
            # Of memory of its own: users change gradients in place.
            self.grad_bias.clone() if self.wanted.bias_hh and self.grad_bias is not None else None,
            self.pointwise.offset_gradient(),
        ]
