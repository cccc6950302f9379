"""How a recurrence takes its steps: one after the other, or as many as it can in one launch."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.launching import serve
from .order import Order
from .pointwise import Pointwise, PointwiseModReLU, pointwise_for

if TYPE_CHECKING:
    from ..kernels.recurrence import Loop


class Stepping:
    """One step after the other: the products with the recurrent weights come before each."""

    joins = False
    """Whether a run may be of many steps."""

    def __init__(self, pointwise: Pointwise) -> None:
        self.pointwise = pointwise

    def forward_(self, first: Tensor, steps: int) -> None:
        """Replace what the steps of a run add up by states, given the product the first one adds.

        ``first`` (rows, n) is of the first step.
        """
        self.pointwise.forward_(first)

    def backward_(self, last: Tensor, states: Tensor, steps: int) -> None:
        """Replace gradients of states by those of what the steps of a run add up.

        ``last`` (rows, n), of the last step, is whole; the others lack what comes from the step
        after. ``states`` are of that step too.
        """
        self.pointwise.backward_(last, states)


class _InOneLaunch(Stepping):
    """Runs of any number of steps, in modReLU recurrences.

    Rows lie in memory one after the other, those of all steps.
    """

    joins = True
    pointwise: PointwiseModReLU

    def __init__(self, loop: "Loop", offset: Tensor | None, reverse: bool) -> None:
        super().__init__(PointwiseModReLU(offset))
        self._loop, self._sign = loop, -1 if reverse else 1

    def forward_(self, first: Tensor, steps: int) -> None:
        self._loop.forward_(first, steps, self._sign * first.numel())

    def backward_(self, last: Tensor, states: Tensor, steps: int) -> None:
        along = self.pointwise.along
        self._loop.backward_(last, states, along, steps, -self._sign * last.numel())


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
    # Products of what does not fit together are torch's to refuse.
    fits = (matrix.dtype, matrix.device) == (states.dtype, states.device)
    if nonlinearity == "modrelu" and fits and serve(states):
        from ..kernels import recurrence

        tiling = recurrence.Tiling.of(order.batch_sizes[0], len(matrix), matrix.dtype)
        if tiling is not None:
            return _InOneLaunch(recurrence.Loop(matrix, offset, tiling), offset, order.reverse)
    return Stepping(pointwise_for(nonlinearity, states, offset))
