"""How a batch of matrices lies on processes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import collectives
from .marks import averages_gradients

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_spread(t: torch.Tensor) -> bool:
    """Return whether processes hold parts of a tensor, as a DTensor, or parts of its gradient."""
    return is_dtensor(t) or averages_gradients(t) is not None


def is_dtensor(t: Any) -> bool:
    """Return whether a tensor is a DTensor; torch's module for them need not be there."""
    return hasattr(t, "placements")


def local_of(t: Any) -> torch.Tensor:
    """Return the part of a DTensor on this process; any other tensor as it is."""
    return t.to_local() if is_dtensor(t) else t


def whole_of(t: Any) -> torch.Tensor:
    """Gather a DTensor; return any other tensor as it is."""
    return t.full_tensor() if is_dtensor(t) else t


def place_like(t: torch.Tensor, p: Any) -> torch.Tensor:
    """Place a tensor as a DTensor is; all processes get parts of the first one's."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t, p.device_mesh, p.placements)


def from_part(part: torch.Tensor, p: Any, placements: list[Any], shape: torch.Size) -> Any:
    """Return a DTensor on the mesh of another one, with a copy of a part, on its device.

    Parts may be in the memory of the host, and the mesh one of GPUs, to which
    ``DTensor.from_local`` moves them.
    """
    from torch.distributed.tensor import DTensor

    no_values = torch.empty(part.shape, dtype=part.dtype, device="meta")
    stride = torch.empty(shape, device="meta").stride()
    like = DTensor.from_local(
        no_values, p.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )
    whole: Any = torch.empty_like(like, device=part.device)
    whole.to_local().copy_(part)
    return whole


def placements_of_batch(p: Any) -> list[Any] | None:
    """Return how one number for each matrix of a parameter lies, None if each process has all."""
    lead, placements = p.dim() - 2, getattr(p, "placements", ())
    if not any(one.is_shard() and one.dim < lead for one in placements):
        return None
    from torch.distributed.tensor import Replicate

    return [one if one.is_shard() and one.dim < lead else Replicate() for one in placements]


class Axis:
    """Rows or columns that are not split over processes: all of them are here.

    Parameters
    ----------
    size : int
        how many there are
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.own = slice(0, size)

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the part, along the last axis, that belongs to what is here."""
        return rows

    def total(self, t: torch.Tensor) -> torch.Tensor:
        """Add up what each process has made of its part."""
        return t

    def whole(self, t: torch.Tensor) -> torch.Tensor:
        """Join parts along the last axis."""
        return t

    def agreed(self, flags: torch.Tensor) -> torch.Tensor:
        """Return where the flags of all processes are True."""
        return flags

    def largest(self, t: torch.Tensor) -> torch.Tensor:
        """Return the largest of what all processes give."""
        return t


class SplitAxis(Axis):
    """The rows or the columns of matrices, split over a group as torch.chunk does.

    Parameters
    ----------
    size : int
        how many there are
    group : ProcessGroup
        whose processes hold one part each
    replicas : sequence of ProcessGroup
        Groups across which the same part is held several times. They take the sums of the first
        one, for another order of summation may give other bits.
    """

    def __init__(
        self, size: int, group: "ProcessGroup", replicas: Sequence["ProcessGroup"]
    ) -> None:
        super().__init__(size)
        self._group, self._replicas = group, replicas
        width = -(-size // group.size())
        start = min(size, group.rank() * width)
        self.own = slice(start, min(size, start + width))

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the part that belongs to what is here."""
        return rows[..., self.own]

    def total(self, t: torch.Tensor) -> torch.Tensor:
        """Add up over the group; the same bits on all replicas."""
        t = collectives.sum_over(t, self._group)
        for group in self._replicas:
            t = collectives.first_of(t, group)
        return t

    def whole(self, t: torch.Tensor) -> torch.Tensor:
        """Join the parts of the group."""
        return collectives.concatenate_over(t, self._group, self.size)

    def agreed(self, flags: torch.Tensor) -> torch.Tensor:
        """Return where the flags of the group are True."""
        return collectives.all_over(flags, self._group)

    def largest(self, t: torch.Tensor) -> torch.Tensor:
        """Return the largest of what the group and its replicas give."""
        for group in (self._group, *self._replicas):
            t = collectives.largest_over(t, group)
        return t


class Layout(NamedTuple):
    """How the matrices of a parameter lie, and whose gradients are averaged."""

    rows: Axis
    columns: Axis
    averaged: "ProcessGroup | None" = None

    def total(self, t: torch.Tensor) -> torch.Tensor:
        """Add up numbers that each process has made of its part of a matrix."""
        return self.columns.total(self.rows.total(t))

    def agreed(self, flags: torch.Tensor) -> torch.Tensor:
        """Return where the flags of all processes are True."""
        flags = self.columns.agreed(self.rows.agreed(flags))
        return flags if self.averaged is None else collectives.all_over(flags, self.averaged)

    def common(
        self, rate: float | torch.Tensor, choices: object, device: torch.device
    ) -> float | torch.Tensor:
        """Return the largest of the rates that processes with parts of a matrix have.

        NaN if they do not print the same choices: they would turn their parts in different ways.
        """
        if type(self.rows) is type(self.columns) is Axis:
            return rate
        number = collectives.digest(repr(choices))
        told = torch.full((3,), number, dtype=torch.float64, device=device)
        told[0] = rate
        told[2].neg_()
        largest, most, least = self.columns.largest(self.rows.largest(told)).unbind()
        return torch.where(most == -least, largest, torch.nan)

    @property
    def is_local(self) -> bool:
        """Whether each process has whole matrices and gradients."""
        return type(self.rows) is type(self.columns) is Axis and self.averaged is None


def layout_of(p: Any) -> Layout:
    """Return how the matrices of a parameter, (*, n, m), lie on processes."""
    sizes = p.shape[-2:]
    axes = [Axis(size) for size in sizes]
    for axis, i in _split_axes(p).items():
        mesh = p.device_mesh
        replicated = [j for j, one in enumerate(p.placements) if one.is_replicate()]
        replicas = [mesh.get_group(j) for j in replicated if mesh.size(j) > 1]
        axes[axis] = SplitAxis(sizes[axis], mesh.get_group(i), replicas)
    rows, columns = axes
    return Layout(rows, columns, averages_gradients(p))


def misplacement(p: Any, k: int | None, blocks: int) -> str | None:
    """Say why steps cannot be taken of a DTensor that lies as ``p`` does, if so.

    Parameters
    ----------
    p : torch.Tensor
        (*, blocks n, m)
    k : int or None
        rank of the steps
    blocks : int
        how many matrices lie one above the other
    """
    from torch.distributed.tensor import Replicate, Shard

    mesh = p.device_mesh
    kinds = {type(placement) for placement in p.placements}
    if not kinds <= {Shard, Replicate}:
        return "must be placed only by Shard and Replicate"
    dims = [placement.dim for placement in p.placements if placement.is_shard()]
    if len(set(dims)) < len(dims):
        return "must have each axis split over one dimension of its mesh"
    if mesh.get_coordinate() is None:
        return "must be on a mesh that this process is part of"
    if any(mesh.get_group(i).rank() != mesh.get_local_rank(i) for i in range(mesh.ndim)):
        return "must be on a mesh whose ranks ascend"
    split = _split_axes(p)
    if k is None and split:
        return "must have a finite `k` if its matrices are split, because k=None needs whole ones"
    if blocks > 1 and 0 in split:
        return f"must not have its rows split, because it stacks {blocks} matrices"
    return None


def mesh_groups_of(p: Any) -> "list[ProcessGroup]":
    """Return the groups of several processes that this one is in, by dimension of the mesh."""
    mesh = getattr(p, "device_mesh", None)
    if mesh is None or mesh.get_coordinate() is None:
        return []
    return [mesh.get_group(i) for i in range(mesh.ndim) if mesh.size(i) > 1]


def _split_axes(p: Any) -> dict[int, int]:
    """Return which dimension of the mesh splits the rows, 0, and the columns, 1."""
    lead = p.dim() - 2
    shards = enumerate(getattr(p, "placements", ()))
    split = {one.dim - lead: i for i, one in shards if one.is_shard() and one.dim >= lead}
    return {axis: i for axis, i in split.items() if p.device_mesh.size(i) > 1}
