"""The option ``skip_nonfinite="all"``: one bad gradient leaves every parameter as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..backends.distributed import agreed_by_all, is_dtensor, local_of
from . import waiting
from .kinds import Parts

SKIP_NONFINITE = ("manifold", "all")
COUNTER = "skipped_steps"
"""What counts skipped steps in the state of parameters that are not on our manifolds."""

States = Mapping[torch.Tensor, dict[str, Any]]


class AllOrNothing:
    """Skip the step of all groups with this option where one gradient is not finite.

    On a CPU, and at the first step of a parameter, the host reads whether the gradients are finite
    and takes no step if one is not. On a GPU, where reading would wait, the step is taken and
    undone: gradients on LowRankUnitary become NaN, with which these parameters skip their step;
    the others and their state are copied before and put back after.

    Parameters
    ----------
    groups : list
        the groups of the optimizer
    parts : list of Parts
        their parameters
    states : mapping
        of the optimizer
    needed : callable
        Given a group, the names that the state of a plain or geoopt parameter has after its first
        step. A step that creates state cannot be undone.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        parts: list[Parts],
        states: States,
        needed: Callable[[dict[str, Any]], Iterable[str]],
    ) -> None:
        self._states = states
        self._guarded = [
            (group, part)
            for group, part in zip(groups, parts, strict=True)
            if group["skip_nonfinite"] == "all"
        ]
        self._needed = needed
        self.skips = False
        """Whether the host knows that the groups with this option skip the step."""
        self.finite: dict[torch.Tensor, torch.Tensor] = {}
        """By parameter whether its gradient is finite, bool, on its device."""
        self._everywhere: list[torch.Tensor] = []
        if self._guarded:
            params = (p for group in groups for p in group["params"])
            finite = {p: _is_finite(p.grad) for p in params if p.grad is not None and not p.is_meta}
            self.finite, self._everywhere = agreed_by_all(finite)

    def context(self) -> AbstractContextManager[None]:
        """Return the context in which to step; parameters that must not be stepped are gone."""
        if not self.finite:
            return nullcontext()
        if not self._can_undo():
            if not all(map(bool, (*self.finite.values(), *self._everywhere))):
                self._skip()
            return nullcontext()
        first, *_ = self.finite
        flags = [*self.finite.values(), *self._everywhere]
        flags = [flag.to(first.device, non_blocking=True) for flag in flags]
        return self._undone_unless(torch.stack(flags).all())

    def _can_undo(self) -> bool:
        """Return whether reading would wait, and all that a step changes can be put back."""
        if any(waiting.reads_at_once(p) for p in self.finite):
            return False
        # torch.where takes neither DTensors nor sparse tensors.
        tensors = list(self.finite) + [p.grad for p in self.finite]
        for group, part in self._guarded:
            for p in part.others():
                state = self._states.get(p, {})
                if any(state.get(name) is None for name in self._needed(group)):
                    return False
                tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return not any(t.is_sparse or is_dtensor(t) for t in tensors if t is not None)

    def _skip(self) -> None:
        self.skips = True
        for _, part in self._guarded:
            for members in part.low_rank.values():
                for state in members.states:
                    state["skipped"] += 1
            for p in part.others():
                count_skipped(self._states[p], p, 1)
            part.clear()

    @contextmanager
    def _undone_unless(self, finite: torch.Tensor) -> Iterator[None]:
        others = [p for _, part in self._guarded for p in part.others()]
        for p in others:
            _put_step_on_device(self._states[p], p)
        kept = [
            (t, t.clone())
            for p in others
            for t in (p, *self._states[p].values())
            if isinstance(t, torch.Tensor)
        ]
        for members in (m for _, part in self._guarded for m in part.low_rank.values()):
            members.grads[:] = [
                torch.where(finite.to(grad.device, non_blocking=True), grad, torch.nan)
                for grad in members.grads
            ]
        try:
            yield
        except BaseException:
            finite = torch.zeros_like(finite)
            raise
        finally:
            for t, before in kept:
                t.copy_(torch.where(finite.to(t.device, non_blocking=True), t, before))
        for p in others:
            count_skipped(self._states[p], p, ~finite)


def count_skipped(state: dict[str, Any], p: torch.Tensor, steps: int | torch.Tensor) -> None:
    """Add to the counter of a parameter that is not on one of this package's manifolds."""
    if COUNTER not in state:
        with torch.inference_mode(False):
            # Not in the dtype of the parameter: bfloat16 counts to 256.
            state[COUNTER] = torch.zeros((), dtype=torch.float32, device=p.device)
    if isinstance(steps, torch.Tensor):
        steps = steps.to(p.device, non_blocking=True)
    state[COUNTER] += steps


def _is_finite(grad: torch.Tensor) -> torch.Tensor:
    # Not coalesced, which would wait for a GPU.
    values = grad._values() if grad.is_sparse else local_of(grad)
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=grad.device)
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    # One pass that creates nothing of the gradient's size.
    lowest, highest = real.aminmax()
    return torch.isfinite(lowest) & torch.isfinite(highest)


def _put_step_on_device(state: dict[str, Any], p: torch.Tensor) -> None:
    """Move the number of steps, which torch and geoopt may keep on the host, to the device."""
    step = state.get("step")
    if isinstance(step, int | float):
        # geoopt's; it computes powers of it in double precision. Filled on the device: to copy a
        # number there would wait.
        state["step"] = torch.full((), step, dtype=torch.float64, device=p.device)
    elif isinstance(step, torch.Tensor) and step.device != p.device:
        state["step"] = step.to(p.device, non_blocking=True)
