"""How many matrices are stepped together."""

from collections.abc import Sequence

import torch

# Matrices with fewer entries spend their step in launching operations: stacking pays.
_STACK_BELOW = 256**2
# A GPU passes over a matrix of so many bytes in less time than a step takes to launch; copying as
# many as this to a stack and back takes no longer than the launches of a few steps.
_STACK_BELOW_BYTES = 8 * 2**20
_STACK_BYTES = 64 * 2**20
# Of the points, for each thread: as large as point, direction and state may be in a cache of a few
# MiB. Smaller parts spend their step in launching operations.
_PART_BYTES = 4 * 2**20


def parts_of_list(x: Sequence[torch.Tensor]) -> list[slice]:
    """Part tensors of one shape into those that are stacked for one step, small ones."""
    first, most = x[0], len(x)
    if most == 1:
        return [slice(0, 1)]
    if first.is_cuda:
        size = first.numel() * first.element_size()
        most = max(1, _STACK_BYTES // max(1, size)) if size < _STACK_BELOW_BYTES else 1
    elif first.shape[-2] * first.shape[-1] >= _STACK_BELOW:
        most = 1
    elif cache := _cache_of(first):
        most = max(1, cache // max(1, first.numel() * first.element_size()))
    return [slice(start, start + most) for start in range(0, len(x), most)]


def parts_of_batch(x: torch.Tensor) -> list[slice]:
    """Cut a large batch on a CPU into parts that stay in its cache from product to product."""
    parts = 1
    if cache := _cache_of(x):
        # Of equal size: a small rest would launch as many operations as a full part.
        parts = min(len(x), round(x.numel() * x.element_size() / cache))
    count = max(1, -(-len(x) // max(1, parts)))
    return [slice(start, start + count) for start in range(0, max(len(x), 1), count)]


def _cache_of(x: torch.Tensor) -> int:
    """Return how many bytes of points stay in a CPU's cache, 0 for a GPU."""
    return _PART_BYTES * torch.get_num_threads() if x.device.type == "cpu" else 0
