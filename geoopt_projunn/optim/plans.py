"""What a process is about to do, in words that mean the same on all processes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..backends.distributed import (
    Peers,
    averages_gradients,
    digest,
    is_dtensor,
    local_of,
    number_of,
)
from . import waiting
from .kinds import low_rank_of, manifold_of
from .messages import described

OPTIONS = (
    "normalize",
    "maximize",
    "skip_nonfinite",
    "stabilize",
    "momentum",
    "dampening",
    "nesterov",
    "momentum_space",
    "error_feedback",
    "betas",
    "eps",
    "amsgrad",
    "second_moment",
)
"""What decides, beside the manifold, which numbers processes exchange, or is part of a direction
that each of them computes for its part. Rates are not: the steps of parts take the largest."""
# A message names as many parameters, or processes, one by one.
_MOST = 4


class Entry(NamedTuple):
    """A parameter in a plan."""

    name: str
    details: tuple[str, ...]


Plan = list[list[Entry]]
"""The parameters of some processes in the order of their steps, those of a batch together."""
Reports = Mapping[int, tuple[str | None, Plan]]
"""By process, why it takes no step, if so, and its plan."""


def stepped_entry(
    p: torch.Tensor, group: Mapping[str, Any], state: Mapping[str, Any], begins: bool | None = None
) -> Entry:
    """Return the entry of a parameter that takes a step of low rank.

    ``begins`` says of one at its first step whether it is probed.
    """
    name = described(p, group)
    if averages_gradients(p) is not None:
        name += f", marked as number {number_of(p)}"
    if begins is None:
        time = "after its first step"
    else:
        time = "at its first step" + ("" if begins else ", with `lr` = 0")
    manifold = low_rank_of(p)
    details = [
        f"on {type(manifold).__name__}",
        # "auto" and a number may mean the same.
        f"with `k` = {manifold.rank(p)}",
        *(f"with `{o}` = {getattr(manifold, o)!r}" for o in ("retraction", "sketch", "sweep")),
        f"with `blocks` = {manifold.blocks}",
        *_options(group),
        *_layout(p),
        f"with the state {', '.join(sorted(state))}",
        time,
    ]
    if begins is not None and "step" in state:
        details += _steps(state["step"])
    if is_dtensor(p.grad):
        details.append(f"with a gradient placed as {p.grad.placements}")  # type: ignore[union-attr]
    return Entry(name, tuple(details))


def idle_entry(p: torch.Tensor, group: Mapping[str, Any], *, counts: bool) -> Entry:
    """Return the entry of a DTensor that takes no step of low rank.

    ``counts`` says whether something is exchanged of it if it has a gradient.
    """
    manifold = manifold_of(p)
    lacks = p.grad is None and (counts or manifold is not None)
    name = described(p, group) + (", without a gradient" if lacks else "")
    if manifold is None:
        return Entry(name, ("on no manifold",))
    # It may have to be projected.
    return Entry(name, (f"on {manifold}", *_options(group, ["stabilize"]), *_layout(p)))


def plan_of(optimizer: Entry, peers: Peers, batches: Iterable[list[tuple[Peers, Entry]]]) -> Plan:
    """Return what processes have in common of the batches of this one, in their order."""
    ranks = set(peers.ranks)
    plan = [[entry for of, entry in batch if ranks.issubset(of.ranks)] for batch in batches]
    return [[optimizer], *filter(None, plan)]


def digest_of(plan: Plan) -> int:
    """Return a number that tells plans apart; it is not negative."""
    return digest(repr([[tuple(entry) for entry in batch] for batch in plan]))


def _steps(taken: torch.Tensor) -> Iterator[str]:
    """Tell the numbers of steps that a loaded state counts; they choose what a sketch looks at.

    Matrices of a batch that is split over processes count their own.
    """
    if is_dtensor(taken):
        if any(place.is_shard() for place in taken.placements):  # type: ignore[attr-defined]
            return
        taken = local_of(taken)
    counts = taken.flatten().tolist()
    told = str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
    yield f"after {told} step{'' if told == '1' else 's'}"


def _layout(p: torch.Tensor) -> Iterator[str]:
    yield f"with the dtype {p.dtype}"
    if is_dtensor(p):
        yield f"placed as {p.placements}"  # type: ignore[attr-defined]


def _options(group: Mapping[str, Any], names: Iterable[str] = OPTIONS) -> Iterator[str]:
    for name in names:
        if name in group:
            text = f"with `{name}` = {_told(group[name])!r}"
            if name == "stabilize" and group[name] is not None:
                text += f" after {group.get('step', 0) % group[name]} steps"
            yield text


def _told(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_told, value))
    if isinstance(value, torch.Tensor):
        return value.item() if waiting.reads_at_once(value) else "a tensor"
    return value


def failure_in(reports: Reports) -> str | None:
    """Return what to say if a process takes no step."""
    for rank, (failure, _) in reports.items():
        if failure is not None:
            return (
                f"Process {rank} cannot take this step, so no process takes it that shares "
                f"parameters with it or averages gradients with it. Its error is {failure}"
            )
    return None


def difference(reports: Reports) -> str:
    """Say in what the plans of processes differ."""
    if not reports:
        return "another process has others"
    entries = {rank: [e for batch in plan for e in batch] for rank, (_, plan) in reports.items()}
    for texts in (
        {rank: [entry.name for entry in some] for rank, some in entries.items()},
        {
            rank: [f"{e.name}, {d}" for e in some for d in e.details]
            for rank, some in entries.items()
        },
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
