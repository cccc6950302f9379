"""The option ``skip_nonfinite="all"``: one bad gradient leaves every parameter as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .kinds import Parts

SKIP_NONFINITE = ("manifold", "all")
COUNTER = "skipped_steps"
"""What counts the steps that were left out, in the state of parameters not on LowRankUnitary."""

State = Mapping[torch.Tensor, dict[str, Any]]


class AllOrNothing:
    """What a step with this option does, once the gradients are known.

    Where the host can read whether they are finite without waiting, and at the first step, it
    reads it and takes no step. A GPU takes the step and undoes it: gradients on LowRankUnitary
    become NaN, which leaves their step out, and other parameters and their state are copied
    before and put back after.

    Parameters
    ----------
    groups : list
        the groups of the optimizer
    parts : list of Parts
        their parameters
    state : mapping
        of the optimizer
    needed : callable
        given a group, what a parameter that is not on LowRankUnitary must have in its state,
        to take a step that can be undone
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        parts: list[Parts],
        state: State,
        needed: Callable[[dict[str, Any]], Iterable[str]],
    ) -> None:
        self._state = state
        guarded = [
            (group, part)
            for group, part in zip(groups, parts, strict=True)
            if group["skip_nonfinite"] == "all"
        ]
        self.left_out = False
        """Whether the host knows that the groups with this option take no step."""
        self.finite: dict[torch.Tensor, torch.Tensor] = {}
        """By parameter whether its gradient is finite, bool, on its device."""
        if not guarded:
            return
        every = (p for group in groups for p in group["params"] if p.grad is not None)
        self.finite = {p: _is_finite(p.grad) for p in every}
        self._guarded = [part for _, part in guarded]
        self._knows_all = all(
            name in state.get(p, ())
            for group, part in guarded
            for name in needed(group)
            for p in part.others()
        )

    def take(self) -> AbstractContextManager[None]:
        """Return the context in which to take the step; leave out what must not be taken."""
        if not self.finite:
            return nullcontext()
        if not self._knows_all or all(reads_at_once(p) for p in self.finite):
            if not all(map(bool, self.finite.values())):
                self._leave_out()
            return nullcontext()
        first, *_ = self.finite
        flags = [flag.to(first.device, non_blocking=True) for flag in self.finite.values()]
        return self._undone_unless(torch.stack(flags).all())

    def _leave_out(self) -> None:
        self.left_out = True
        for part in self._guarded:
            for p in part.low_rank_parameters():
                self._state[p]["skipped"] += 1
            for p in part.others():
                count_skipped(self._state[p], p, 1)
            part.clear()

    @contextmanager
    def _undone_unless(self, finite: torch.Tensor) -> Iterator[None]:
        low_rank = [p for part in self._guarded for p in part.low_rank_parameters()]
        others = [p for part in self._guarded for p in part.others()]
        for p in others:
            _put_step_on_device(self._state[p], p)
        kept = [
            (t, t.clone())
            for p in others
            for t in (p, *self._state[p].values())
            if isinstance(t, torch.Tensor)
        ]
        grads = {p: p.grad for p in low_rank}
        try:
            for p, grad in grads.items():
                assert grad is not None
                p.grad = torch.where(finite.to(p.device, non_blocking=True), grad, torch.nan)
            yield
        finally:
            for p, grad in grads.items():
                p.grad = grad
        for t, before in kept:
            t.copy_(torch.where(finite.to(t.device, non_blocking=True), t, before))
        for p in others:
            count_skipped(self._state[p], p, ~finite)


def reads_at_once(t: torch.Tensor) -> bool:
    """Return whether the host reads the values of a tensor without waiting for its device."""
    return t.is_cpu


def count_skipped(state: dict[str, Any], p: torch.Tensor, steps: int | torch.Tensor) -> None:
    """Add to the counter of a parameter that is not on LowRankUnitary."""
    if COUNTER not in state:
        # Of the dtype that torch makes of it when a checkpoint is loaded.
        dtype = p.dtype if p.is_floating_point() else p.dtype.to_real()
        state[COUNTER] = torch.zeros((), dtype=dtype, device=p.device)
    if isinstance(steps, torch.Tensor):
        steps = steps.to(p.device, non_blocking=True)
    state[COUNTER] += steps


def _is_finite(grad: torch.Tensor) -> torch.Tensor:
    values = grad.coalesce().values() if grad.is_sparse else grad
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=grad.device)
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    # One pass that creates nothing of the gradient's size.
    lowest, highest = real.aminmax()
    return torch.isfinite(lowest) & torch.isfinite(highest)


def _put_step_on_device(state: dict[str, Any], p: torch.Tensor) -> None:
    """Make a counter of steps one that a device can leave as it is."""
    step = state.get("step")
    if isinstance(step, int | float):
        # geoopt counts in Python, and computes powers in double precision.
        state["step"] = torch.tensor(float(step), dtype=torch.float64, device=p.device)
    elif isinstance(step, torch.Tensor) and step.device != p.device:
        state["step"] = step.to(p.device, non_blocking=True)
