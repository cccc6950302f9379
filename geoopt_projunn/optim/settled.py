"""Which parameters need no agreement of processes any more."""

from collections.abc import Mapping, Set

import torch

Begun = Mapping[torch.Tensor, bool]
"""Parameters at their first step, or the first one after a load; whether they are probed."""


class Settled:
    """Which DTensors their processes have agreed on: at a first step, and the first after a load.

    All of them decide alike whether a parameter is settled, so none waits for an agreement that
    the others do not make. One that has a gradient later than others is settled then.
    """

    def __init__(self) -> None:
        self._takes_steps: dict[torch.Tensor, bool] = {}

    def __contains__(self, p: torch.Tensor) -> bool:
        if p not in self._takes_steps:
            return False
        # A frozen one is settled until it is trained.
        return self._takes_steps[p] or not (p.requires_grad or p.grad is not None)

    def forget_all_but(self, params: Set[torch.Tensor]) -> None:
        """Forget parameters that are not among these."""
        self._takes_steps = {p: takes for p, takes in self._takes_steps.items() if p in params}

    def add(self, p: torch.Tensor, begun: Begun) -> None:
        """Add one that its processes have agreed on, unless its own first step is still to come."""
        if p.grad is None:
            if not p.requires_grad:
                self._takes_steps[p] = False
        # What is not probed at its first step, because its rate is zero, begins again.
        elif begun.get(p, True):
            self._takes_steps[p] = True
