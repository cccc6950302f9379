"""How a recurrence takes its steps: one after the other, or as many as it can in one launch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .kernels.launching import serve
from .pointwise import ModReLU, Pointwise, pointwise_for
from .unrolled import Order, Step

if TYPE_CHECKING:
    from .kernels.recurrence import Loop

ByTime = Sequence[Tensor] | Mapping[int, Tensor]
"""Rows of each time step."""


class Stepping:
    """One step after the other: the products with the recurrent weights come before each."""

    def __init__(self, pointwise: Pointwise) -> None:
        self.pointwise = pointwise

    def runs(self, steps: Iterable[Step]) -> list[list[Step]]:
        """Return what is taken at once of steps in their order."""
        return [[step] for step in steps]

    def forward_(self, run: list[Step], states: ByTime) -> None:
        """Replace what a run adds up by its states, given the product that its first step adds."""
        self.pointwise.forward_(states[run[0].now])

    def backward_(self, run: list[Step], grads: ByTime, states: ByTime) -> None:
        """Replace gradients of states by those of what the steps of a run add up.

        The gradient of the last one is whole, the others lack what comes from the step after.
        """
        now = run[0].now
        self.pointwise.backward_(grads[now], states[now])


class _InOneLaunch(Stepping):
    """Steps that follow each other with as many rows, in modReLU recurrences.

    Rows lie in memory one after the other, those of all steps.
    """

    pointwise: ModReLU

    def __init__(self, loop: "Loop", offset: Tensor | None, order: Order) -> None:
        super().__init__(ModReLU(offset))
        self._loop, self._order = loop, order

    def runs(self, steps: Iterable[Step]) -> list[list[Step]]:
        return self._order.runs(steps)

    def forward_(self, run: list[Step], states: ByTime) -> None:
        first = states[run[0].now]
        self._loop.forward_(
            first, len(run), -first.numel() if self._order.reverse else first.numel()
        )

    def backward_(self, run: list[Step], grads: ByTime, states: ByTime) -> None:
        now = run[-1].now
        last = grads[now]
        stride = last.numel() if self._order.reverse else -last.numel()
        self._loop.backward_(last, states[now], self.pointwise.along, len(run), stride)


def stepping_for(
    nonlinearity: str, states: Tensor, matrix: Tensor, offset: Tensor | None, order: Order
) -> Stepping:
    """Return how a recurrence takes its steps.

    Parameters
    ----------
    nonlinearity : {"modrelu", "relu", "tanh"}
        of the recurrence
    states : torch.Tensor
        (rows, n) of all steps, or what they are made of; contiguous
    matrix : torch.Tensor
        (n, n), what a row is multiplied by between two steps: the recurrent weights, or on the way
        back their conjugate transpose
    offset : torch.Tensor or None
        (n,), of a modReLU; the gradients of a real one do not need it
    order : Order
        of the recurrence
    """
    if nonlinearity == "modrelu" and serve(states):
        from .kernels import recurrence

        tiling = recurrence.Tiling.of(order.batch_sizes[0], len(matrix), matrix.dtype)
        if tiling is not None:
            return _InOneLaunch(recurrence.Loop(matrix, offset, tiling), offset, order)
    return Stepping(pointwise_for(nonlinearity, states, offset))
