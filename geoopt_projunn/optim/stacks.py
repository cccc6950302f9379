"""The state of several parameters as one batch."""

import torch

from ..linalg.batch import Pieces, gather, is_copy, split
from .rules import Buffers


def gather_states(states: list[Buffers], lead: int) -> Buffers:
    """Gather all buffers, and make the states views of what was stacked.

    From the next step on there is nothing to copy.
    """
    stacks = {}
    for name in states[0]:
        buffers = [state[name] for state in states]
        stacks[name] = stacked = gather(buffers, lead)
        if is_copy(stacked, buffers) and _may_move(buffers):
            for state, view in zip(states, split(stacked, buffers), strict=True):
                state[name] = view
    return stacks


def _may_move(buffers: Pieces) -> bool:
    """Return whether these alone keep their memory alive, and no replay will read it."""
    if buffers[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    views = [buffer for buffer in buffers if buffer._base is not None]
    bases = {id(base): base for view in views if (base := view._base) is not None}
    return sum(v.numel() for v in views) == sum(base.numel() for base in bases.values())
