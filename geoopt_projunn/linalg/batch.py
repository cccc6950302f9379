"""Batches of matrices that lie in several tensors.

What takes ``Pieces`` takes tensors of one shape, (*, n, n), dtype, device and strides for the
batch (b, n, n) of all their matrices in order.
"""

import math
from collections.abc import Sequence

import torch

Pieces = Sequence[torch.Tensor]


def count(pieces: Pieces) -> int:
    """Return the number of matrices."""
    return len(pieces) * math.prod(pieces[0].shape[:-2])


def gather(pieces: Pieces, lead: int | None = None) -> torch.Tensor:
    """View or stack tensors as one, with its ``lead`` first dimensions, all but 2, as one."""
    shape = pieces[0].shape
    lead = len(shape) - 2 if lead is None else lead
    if len(pieces) == 1:
        whole = pieces[0].detach()
    else:
        found = _whole_of(pieces)
        whole = torch.stack(list(pieces)) if found is None else found
    return whole.reshape(len(pieces) * math.prod(shape[:lead]), *shape[lead:])


def scatter(whole: torch.Tensor, pieces: Pieces) -> None:
    """Write back what :func:`gather` took, unless it was a view."""
    if is_copy(whole, pieces):
        torch._foreach_copy_(list(pieces), split(whole, pieces))


def is_copy(whole: torch.Tensor, pieces: Pieces) -> bool:
    """Return whether :func:`gather` copied."""
    # torch.compile, which gathers nothing, cannot compare addresses.
    is_whole = len(pieces) == 1 and pieces[0].dim() == whole.dim()
    return not is_whole and whole.data_ptr() != pieces[0].data_ptr()


def split(whole: torch.Tensor, pieces: Pieces) -> list[torch.Tensor]:
    """View what :func:`gather` returned as tensors of the shape of the pieces."""
    return list(whole.view(len(pieces), *pieces[0].shape).unbind(0))


def _whole_of(pieces: Pieces) -> torch.Tensor | None:
    """Return the tensor whose parts these are, in their order, if there is one."""
    first = pieces[0]
    whole = first._base
    if whole is None or whole.shape != (len(pieces), *first.shape) or whole.dtype != first.dtype:
        return None
    start, size = whole.data_ptr(), first.numel() * first.element_size()
    in_order = [piece.data_ptr() for piece in pieces] == [
        start + i * size for i in range(len(pieces))
    ]
    plain = whole.is_contiguous() and all(piece.is_contiguous() for piece in pieces)
    return whole.detach() if in_order and plain else None
