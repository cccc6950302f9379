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


def first_of(t: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Return the tensor of the group's first process."""
    t = t.resolve_conj().contiguous()
    # Older versions of torch broadcast no complex numbers by gloo.
    numbers = torch.view_as_real(t) if t.is_complex() else t
    distributed.broadcast(numbers, group=group, group_src=0)
    return t
