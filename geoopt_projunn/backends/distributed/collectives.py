"""What processes exchange: sums, means, parts and flags, the same bits on each of them."""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

# The name since torch 2.13, and the one before.
_gather: Any = getattr(distributed, "all_gather_single", None) or getattr(
    distributed, "all_gather_into_tensor", None
)

if TYPE_CHECKING:
    # Not there where torch was built without it.
    from torch.distributed import ProcessGroup


def sum_over(t: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Add up the tensors of all processes."""
    t = t.resolve_conj().contiguous()
    distributed.all_reduce(t, group=group)
    return t


def mean_over(t: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Average the tensors of all processes."""
    return sum_over(t, group).div_(group.size())


def concatenate_over(t: torch.Tensor, group: "ProcessGroup", size: int) -> torch.Tensor:
    """Join parts (b, k, m) along the last axis; the parts are those of torch.chunk of ``size``."""
    width = -(-size // group.size())
    # All parts but the last ones are of this width: what fills up the others comes last.
    padded = torch.nn.functional.pad(t, (0, width - t.shape[-1]))
    part = padded.movedim(-1, 0).resolve_conj().contiguous()
    gathered = t.new_empty(group.size() * width, *t.shape[:-1])
    _gather(gathered, part, group=group)

    return gathered[:size].movedim(0, -1).contiguous()


def all_over(flags: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Return where the flags of all processes are True."""
    numbers = flags.to(torch.uint8)
    distributed.all_reduce(numbers, distributed.ReduceOp.MIN, group=group)
    return numbers.bool()


def largest_over(t: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Return the largest of the numbers of all processes."""
    t = t.clone()
    distributed.all_reduce(t, distributed.ReduceOp.MAX, group=group)
    return t


def digest(text: str) -> int:
    """Return a number for a text, below 2**48, which float64 holds; Python's own hashes differ."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def are_alike(number: int, group: "ProcessGroup", device: torch.device) -> torch.Tensor:
    """Return whether all processes give the same number, below 2**63, without waiting for it."""
    # The least of a number and of its negative tell the least and the largest.
    both = torch.full((2,), number, device=device)
    both[1:].neg_()
    distributed.all_reduce(both, distributed.ReduceOp.MIN, group=group)
    return both[0] == -both[1]


def objects_of(value: Any, group: "ProcessGroup") -> dict[int, Any]:
    """Return what each process gives, by its rank among all processes; the host waits."""
    values = [None] * group.size()
    distributed.all_gather_object(values, value, group=group)
    return dict(zip(distributed.get_process_group_ranks(group), values, strict=True))


def assert_all_are_here(group: "ProcessGroup") -> None:
    """Raise RuntimeError, after the group's time-out, if a process does not call this.

    Only with gloo; other backends wait in what follows, and raise their own errors.
    """
    if distributed.get_backend(group) == "gloo":
        distributed.monitored_barrier(group)


def first_of(t: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Return the tensor of the group's first process."""
    t = t.resolve_conj().contiguous()
    # Older versions of torch broadcast no complex numbers by gloo.
    numbers = torch.view_as_real(t) if t.is_complex() else t
    distributed.broadcast(numbers, group=group, group_src=0)
    return t
