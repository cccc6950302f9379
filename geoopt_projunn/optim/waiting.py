"""Whether the host would wait for a device; a module of its own, which tests patch."""

import torch


def reads_at_once(t: torch.Tensor) -> bool:
    """Return whether the host reads the values of a tensor without waiting for its device."""
    return t.is_cpu
