"""The memory that a function takes while it runs."""

from collections.abc import Callable
from itertools import accumulate

import torch


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """Return the largest sum of what torch has allocated during a call, beyond what was there."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)
