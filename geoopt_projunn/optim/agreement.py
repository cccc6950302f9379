"""Processes that share parameters, or average gradients, agree on what they are about to do."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from ..backends.distributed import (
    Peers,
    any_is_marked,
    averages_gradients,
    is_dtensor,
    local_of,
    may_have_peers,
    peers_of_group,
    peers_of_mesh,
)
from ..linalg.modes import is_capturing
from . import waiting
from .kinds import Groups, Parts
from .nonfinite import States
from .plans import (
    Entry,
    Plan,
    Reports,
    difference,
    digest_of,
    failure_in,
    idle_entry,
    plan_of,
    stepped_entry,
)
from .settled import Begun, Settled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What a process that has failed sends in place of the digest of its plan, which is never negative.
_OF_A_FAILURE = -1

Rates = dict["ProcessGroup", torch.Tensor]


class Agreement:
    """Exchanges before a step: whether all processes are about to do the same.

    Processes that average gradients make one in each step, whatever gradients there are on this
    process, even none: the others may have some, and wait for it. Those that share parameters, as
    DTensors, make two at the first steps of these, where the host waits anyway: one before points
    are probed together, and one after it.

    Parameters
    ----------
    groups : list
        of an optimizer
    settled : Settled, optional
        Which DTensors need no agreement; without it none does.
    """

    def __init__(self, groups: Groups, settled: Settled | None = None) -> None:
        self._devices: dict[Peers, torch.device] = {}
        self._groups, self._settled, self._settles = groups, settled, False
        if any_is_marked():
            self._find_averaging()
        # Nothing begins, and nobody waits, while a graph is captured.
        if settled is not None and may_have_peers() and not is_capturing():
            self._find_sharing(settled)

    def _find_averaging(self) -> None:
        for p in (p for group in self._groups for p in group["params"]):
            over = averages_gradients(p)
            if over is not None and not p.is_meta and (peers := peers_of_group(over)) is not None:
                self._devices.setdefault(peers, p.device)

    def _find_sharing(self, settled: Settled) -> None:
        for p in _dtensors(self._groups):
            if p not in settled and (peers := peers_of_mesh(p)) is not None:
                self._devices.setdefault(peers, local_of(p).device)

    def on_parts(self, optimizer: str, parts: list[Parts], begun: Begun) -> None:
        """Agree on all that processes exchange in steps of DTensors, before they exchange it.

        Parameters
        ----------
        optimizer : str
            the name of its class
        parts : list
            the parameters of its groups, all of which can be stepped here
        begun : mapping
            those that begin with this step, and whether they are probed

        Raises
        ------
        RuntimeError
            If processes disagree, or one of them has failed; on each of them.
        """
        if not self._devices or not (sharing := self._sorted(share=True)):
            return
        self._settles = True
        some_all = any(group["skip_nonfinite"] == "all" for group in self._groups)
        has = "with" if some_all else "without"
        first = Entry("the optimizer", (optimizer, f'{has} `skip_nonfinite` = "all" in some group'))
        batches = self._batches(parts, begun, counts_all=some_all)
        error, _ = self._decide(
            sharing, {peers: plan_of(first, peers, batches) for peers in sharing}
        )
        probed = {peers_of_mesh(p) for p in begun if is_dtensor(p)}
        for peers in sharing:
            if error is not None or peers not in probed:
                del self._devices[peers]
        if error is not None:
            raise error

    def on_steps(self, parts: list[Parts], begun: Begun) -> Rates:
        """Agree on the parameters of a step, before anything moves.

        Parameters
        ----------
        parts, begun
            as in :meth:`on_parts`

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
        if not (self._devices or self._settles):
            return {}
        plans: dict[Peers, Plan] = defaultdict(list)
        awaited = set()
        for group, part in zip(self._groups, parts, strict=True):
            for params, _, states in part.low_rank.values():
                over = averages_gradients(params[0])
                peers = None if over is None else peers_of_group(over)
                if peers is None:
                    continue
                plan = [
                    stepped_entry(p, group, state, begun.get(p))
                    for p, state in zip(params, states, strict=True)
                ]
                plans[peers].append(plan)
                if any(p in begun for p in params):
                    awaited.add(peers)
        error, rates = self._decide(self._sorted(), plans, awaited)
        if error is not None:
            raise error
        if self._settles and self._settled is not None:
            for p in _dtensors(self._groups):
                self._settled.add(p, begun)
        return rates

    def on_states(self, states: States) -> None:
        """Agree on the parameters whose state is averaged; the host waits.

        Raises
        ------
        RuntimeError
            If processes disagree, on each of them; with gloo also if one does not come here.
        """
        plans: dict[Peers, Plan] = defaultdict(list)
        for group in self._groups:
            for p in group["params"]:
                over = averages_gradients(p)
                if over is not None and states.get(p) and (peers := peers_of_group(over)):
                    plans[peers].append([stepped_entry(p, group, states[p])])
        for peers in self._sorted():
            peers.assert_all_are_here()
        error, _ = self._decide(
            self._sorted(), plans, self._devices, act="save the state of", all_wait=True
        )
        if error is not None:
            raise error

    def fail(self, error: Exception) -> None:
        """Let the others know that this process has an error, and takes no step."""
        # They may be gone; the error to raise is that of this process.
        with suppress(RuntimeError):
            self._decide(self._sorted(), {}, failure=f"{type(error).__name__}: {error}")

    def _sorted(self, *, share: bool = False) -> list[Peers]:
        """Return the processes in an order that is the same on all of them."""
        some = (peers for peers in self._devices if peers.share or not share)
        return sorted(some, key=lambda peers: peers.place)

    def _batches(
        self, parts: list[Parts], begun: Begun, *, counts_all: bool
    ) -> list[list[tuple[Peers, Entry]]]:
        """Return entries of all DTensors, in the order of their steps, and who shares them."""
        entries: dict[torch.Tensor, Entry] = {}
        batches = []
        for group, part in zip(self._groups, parts, strict=True):
            for params, _, states in part.low_rank.values():
                if is_dtensor(params[0]):
                    pairs = zip(params, states, strict=True)
                    some = {p: stepped_entry(p, group, of, begun.get(p)) for p, of in pairs}
                    batches.append(some)
                    entries.update(some)
        for group in self._groups:
            idle = [p for p in _dtensors([group]) if p not in entries]
            batches.append({p: idle_entry(p, group, counts=counts_all) for p in idle})
        return [
            [(peers, entry) for p, entry in some.items() if (peers := peers_of_mesh(p)) is not None]
            for some in batches
        ]

    def _decide(
        self,
        all_peers: Iterable[Peers],
        plans: Mapping[Peers, Plan],
        awaited: Collection[Peers] = (),
        *,
        act: str = "take a step with gradients of",
        all_wait: bool = False,
        failure: str | None = None,
    ) -> tuple[RuntimeError | None, Rates]:
        error, rates = None, {}
        for peers in all_peers:
            plan = plans.get(peers, [])
            number = digest_of(plan) if failure is None else _OF_A_FAILURE
            alike = peers.are_alike(number, self._devices[peers])
            all_read = all_wait or peers.share or waiting.reads_at_once(alike)
            if not (all_read or peers in awaited):
                one = torch.ones((), dtype=torch.float64, device=alike.device)
                rates[peers.groups[0]] = torch.where(alike, one, torch.nan)
            elif not alike:
                # The others may have gone on unread, and take no part in a second exchange.
                reports = peers.objects((failure, plan)) if all_read else {}
                error = RuntimeError(_message(act, reports, share=peers.share))
                # No step of other processes either, of groups that come later.
                failure = failure or str(error)
        return error, rates


def _dtensors(groups: Groups) -> Iterator[torch.Tensor]:
    for group in groups:
        for p in group["params"]:
            if is_dtensor(p) and not p.is_meta:
                yield p


def _message(act: str, reports: Reports, *, share: bool) -> str:
    failed = failure_in(reports)
    if failed is not None:
        return failed
    if share:
        return (
            "Processes that share parameters as DTensors must take steps with the same parameters "
            f"and options, but {difference(reports)}. Nothing has changed. Build the model and the "
            "optimizer by the same code, with the same options, on all processes, load the same "
            "state, and set `p.grad = torch.zeros_like(p)` where one has no gradient."
        )
    return (
        f"Processes that average gradients, as `sketch_gradients_` asked, must {act} the same "
        "parameters, marked in the same order, but "
        f"{difference(reports)}. Nothing has changed. "
        "Set `p.grad = torch.zeros_like(p)` where a batch has not reached a parameter, give all "
        "processes the same options, and pass the parameters to `sketch_gradients_` and to the "
        "optimizer, and load their state, in the same order on all processes."
    )
