"""Batches of matrices that lie in several tensors.

What takes ``Pieces`` takes tensors of one shape, (*, n, p), dtype, device and strides for the
batch (b, n, p) of all their matrices in order.
"""

import math
from collections.abc import Sequence

import torch

Pieces = Sequence[torch.Tensor]


def gather(pieces: Pieces, lead: int | None = None) -> torch.Tensor:
    """Return all matrices as one batch: a view of one tensor, a stack of several.

    The first ``lead`` dimensions, by default all but the last 2, become one.
    """
    shape = pieces[0].shape
    lead = len(shape) - 2 if lead is None else lead
    whole = pieces[0].detach() if len(pieces) == 1 else torch.stack(list(pieces))
    return whole.reshape(len(pieces) * math.prod(shape[:lead]), *shape[lead:])


def scatter(whole: torch.Tensor, pieces: Pieces) -> None:
    """Write back what :func:`gather` took, unless it was a view."""
    if len(pieces) > 1 or whole.data_ptr() != pieces[0].data_ptr():
        parts = whole.view(len(pieces), *pieces[0].shape).unbind(0)
        if pieces[0].is_conj() or pieces[0].is_neg():
            # torch's function for lists does not take them.
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part)
        else:
            torch._foreach_copy_(list(pieces), list(parts))
