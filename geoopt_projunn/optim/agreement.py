"""Processes that average gradients agree on the parameters that they do it for."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..backends.distributed import (
    any_is_marked,
    are_alike,
    assert_all_are_here,
    averages_gradients,
    digest,
    number_of,
    objects_of,
)
from .kinds import Groups, Parts, manifold_of
from .messages import described
from .nonfinite import States, reads_at_once

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Those of plans are not negative.
_OF_A_FAILURE = -1
# A message names as many parameters, or processes, one by one.
_MOST = 4

Rates = dict["ProcessGroup", torch.Tensor]


class Entry(NamedTuple):
    """A parameter in a plan; texts, which mean the same on all processes."""

    name: str
    details: str


Plan = list[list[Entry]]
"""The parameters of a group of processes in the order of their steps, those of a batch together."""


class Agreement:
    """One exchange for each group of processes: whether all are about to do the same.

    It takes place whatever gradients there are on this process, even none: the others may have
    some, and wait for it.

    Parameters
    ----------
    groups : list
        Groups of an optimizer. Where processes average gradients of their parameters, all of the
        processes make an agreement for each step.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        self._devices: dict[ProcessGroup, torch.device] = {}
        if not any_is_marked():
            return
        for p in (p for group in groups for p in group["params"]):
            over = averages_gradients(p)
            if over is not None and over.size() > 1 and not p.is_meta:
                self._devices.setdefault(over, p.device)

    def on_steps(
        self, groups: Groups, parts: list[Parts], begun: Collection[torch.Tensor]
    ) -> Rates:
        """Agree on the parameters of a step, before anything moves.

        Parameters
        ----------
        groups, parts : list
            the groups of the optimizer and their parameters, all of which can be stepped here
        begun : collection
            those that begin with this step

        Returns
        -------
        dict
            Empty where the host reads at once. Else what learning rates are multiplied by: 1, or
            NaN where processes disagree, with which all of them skip their steps.

        Raises
        ------
        RuntimeError
            If the host reads at once and processes disagree, or one of them has failed; on each
            of them.
        """
        if not self._devices:
            return {}
        plans: dict[ProcessGroup, Plan] = defaultdict(list)
        waiting = set()
        for group, part in zip(groups, parts, strict=True):
            for params, states in part.low_rank.values():
                over = averages_gradients(params[0])
                if over is None:
                    continue
                plan = [
                    _entry(p, group, state, begins=p in begun)
                    for p, state in zip(params, states, strict=True)
                ]
                plans[over].append(plan)
                if any(p in begun for p in params):
                    waiting.add(over)
        error, rates = self._decide("take a step with gradients of", plans, waiting)
        if error is not None:
            raise error
        return rates

    def on_states(self, groups: Groups, states: States) -> None:
        """Agree on the parameters whose state is averaged; the host waits.

        Raises
        ------
        RuntimeError
            If processes disagree, on each of them; with gloo also if one does not come here.
        """
        if not self._devices:
            return
        plans: dict[ProcessGroup, Plan] = defaultdict(list)
        for group in groups:
            for p in group["params"]:
                over = averages_gradients(p)
                if over is not None and states.get(p):
                    plans[over].append([_entry(p, group, states[p], begins=False)])
        for processes in self._sorted():
            assert_all_are_here(processes)
        error, _ = self._decide("save the state of", plans, self._devices, all_wait=True)
        if error is not None:
            raise error

    def fail(self, error: Exception) -> None:
        """Let the others know that this process has an error, and takes no step."""
        # They may be gone; the error to raise is that of this process.
        with suppress(RuntimeError):
            self._decide("", {}, (), failure=f"{type(error).__name__}: {error}")

    def _sorted(self) -> "list[ProcessGroup]":
        """Return the groups of processes in an order that is the same on all of them."""
        return sorted(self._devices, key=lambda over: over.group_name)

    def _decide(
        self,
        act: str,
        plans: "Mapping[ProcessGroup, Plan]",
        waiting: "Collection[ProcessGroup]",
        *,
        all_wait: bool = False,
        failure: str | None = None,
    ) -> tuple[RuntimeError | None, Rates]:
        error, rates = None, {}
        for over in self._sorted():
            plan = plans.get(over, [])
            number = _digest(plan) if failure is None else _OF_A_FAILURE
            alike = are_alike(number, over, self._devices[over])
            all_read = all_wait or reads_at_once(alike)
            if not (all_read or over in waiting):
                one = torch.ones((), dtype=torch.float64, device=alike.device)
                rates[over] = torch.where(alike, one, torch.nan)
            elif not alike:
                # Who reads alone cannot ask the others.
                reports = objects_of((failure, plan), over) if all_read else {}
                error = RuntimeError(_message(act, reports))
                # No step of other processes either, of groups that come later.
                failure = failure or str(error)
        return error, rates


def _entry(
    p: torch.Tensor, group: Mapping[str, Any], state: Iterable[str], *, begins: bool
) -> Entry:
    return Entry(
        f"{described(p, group)}, marked as number {number_of(p)}",
        f"{p.dtype} on the {manifold_of(p)}, with the state {', '.join(sorted(state))}"
        + (", at its first step" if begins else ""),
    )


def _digest(plan: Plan) -> int:
    return digest(repr([[tuple(entry) for entry in batch] for batch in plan]))


def _message(act: str, reports: Mapping[int, tuple[str | None, Plan]]) -> str:
    failures = [(rank, failure) for rank, (failure, _) in reports.items() if failure is not None]
    if failures:
        rank, failure = failures[0]
        return (
            f"Process {rank} takes no step, so that none of those that average gradients with it "
            f"takes one. Its error is {failure}"
        )
    return (
        f"Processes that average gradients, as `sketch_gradients_` asked, must {act} the same "
        "parameters, marked in the same order, but "
        f"{_difference({rank: plan for rank, (_, plan) in reports.items()})}. Nothing has changed. "
        "Set `p.grad = torch.zeros_like(p)` where a batch has not reached a parameter, and pass "
        "the parameters to `sketch_gradients_` and to the optimizer, and load their state, in the "
        "same order on all processes."
    )


def _difference(plans: Mapping[int, Plan]) -> str:
    if not plans:
        return "another process has others"
    entries = {rank: [entry for batch in plan for entry in batch] for rank, plan in plans.items()}
    for texts in (
        {rank: [entry.name for entry in some] for rank, some in entries.items()},
        {rank: [f"{name} ({details})" for name, details in some] for rank, some in entries.items()},
    ):
        shared = set.intersection(*map(set, texts.values()))
        ranks = defaultdict(list)
        for rank, some in texts.items():
            ranks[_some([text for text in some if text not in shared])].append(str(rank))
        if len(ranks) > 1:
            return "; ".join(f"process {_some(r)} has {own}" for own, r in ranks.items())
    return "they have them in different orders, or in batches that differ, as strides may"


def _some(texts: list[str]) -> str:
    if not texts:
        return "no other"
    more = len(texts) - _MOST
    return ", ".join(texts[:_MOST]) + (f" and {more} more" if more > 0 else "")
