"""Processes that have to do the same, and how they find out whether they do."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed

from . import collectives
from .layout import mesh_groups_of
from .marks import averages_gradients

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Peers(NamedTuple):
    """Processes that share parameters as DTensors, or average gradients."""

    groups: "tuple[ProcessGroup, ...]"
    """One, or one for each dimension of a mesh: together they join all of the processes."""
    ranks: tuple[int, ...]
    """All of the processes."""
    share: bool
    """Whether they share parameters."""

    @property
    def place(self) -> tuple[Any, ...]:
        """Sort by it: the order is the same on all processes, so that none waits in a circle.

        Few processes come before many, which so learn of a difference among some of them.
        """
        # Names may be numbers.
        names = [(len(group.group_name), group.group_name) for group in self.groups]
        return not self.share, len(self.ranks), self.ranks, names

    def are_alike(self, number: int, device: torch.device) -> torch.Tensor:
        """Return whether all give the same number, below 2**63, without waiting for it."""
        # The least of a number and of its negative tell the least and the largest.
        both = torch.full((2,), number, device=device)
        both[1:].neg_()
        for group in self.groups:
            distributed.all_reduce(both, distributed.ReduceOp.MIN, group=group)
        return both[0] == -both[1]

    def objects(self, value: Any) -> dict[int, Any]:
        """Return what each process gives, by its rank; the host waits."""
        known = {distributed.get_rank(): value}
        for group in self.groups:
            # Of each process what it has learnt along the dimensions before.
            found: list[Any] = [None] * group.size()
            distributed.all_gather_object(found, known, group=group)
            known = {rank: one for some in found for rank, one in some.items()}
        return dict(sorted(known.items()))

    def assert_all_are_here(self) -> None:
        """Raise RuntimeError, after the time-out, if a process does not call this.

        Only with gloo; other backends wait in what follows, and raise their own errors.
        """
        for group in self.groups:
            if distributed.get_backend(group) == "gloo":
                distributed.monitored_barrier(group)


def peers_of_group(group: "ProcessGroup") -> Peers | None:
    """Return the processes of a group that average gradients, None if there is one."""
    if group.size() == 1:
        return None
    return Peers((group,), tuple(distributed.get_process_group_ranks(group)), share=False)


def peers_of_mesh(p: Any) -> Peers | None:
    """Return the processes that share a DTensor; None if there is one, or this is none of them."""
    groups = mesh_groups_of(p)
    if not groups:
        return None
    return Peers(tuple(groups), tuple(p.device_mesh.mesh.flatten().tolist()), share=True)


def agreed_by_all(
    flags: dict[torch.Tensor, torch.Tensor],
) -> tuple[dict[torch.Tensor, torch.Tensor], list[torch.Tensor]]:
    """Return for each parameter whether its flag is True on all processes that have a part of it.

    And in a list, if there are such parameters, whether all flags of these processes are, those of
    other parameters too: what processes do next must not differ.
    """
    agreed: dict[torch.Tensor, torch.Tensor] = dict(flags)
    shared: dict[Peers, list[torch.Tensor]] = defaultdict(list)
    for p in flags:
        for peers in _all_peers_of(p):
            shared[peers].append(p)
    everywhere: list[torch.Tensor] = []
    # In an order that is the same on all processes, whichever of their parameters have gradients.
    # The largest groups come last, so that their members learn of all flags.
    for peers in sorted(shared, key=lambda peers: peers.place):
        params = shared[peers]
        some = [agreed[p] for p in params]
        device = some[0].device
        both = *agreed.values(), *everywhere
        every = torch.stack([flag.to(device, non_blocking=True) for flag in both]).all()
        told = torch.stack([*some, every])
        for group in peers.groups:
            told = collectives.all_over(told, group)
        *some, every = told.unbind()
        agreed.update(zip(params, some, strict=True))
        everywhere = [every]
    return agreed, everywhere


def _all_peers_of(p: torch.Tensor) -> list[Peers]:
    over = averages_gradients(p)
    found = peers_of_mesh(p), None if over is None else peers_of_group(over)
    return [peers for peers in found if peers is not None]


def may_have_peers() -> bool:
    """Return whether this process may be one of several."""
    return distributed.is_available() and distributed.is_initialized()
