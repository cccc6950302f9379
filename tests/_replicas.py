"""Run a function in two processes that form a group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests._able import broadcast_complex_numbers, skip_unless


def on_two_replicas(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what the function, of the module's top level, gives for each rank."""
    skip_unless(broadcast_complex_numbers)
    torch.multiprocessing.spawn(_run, args=(function, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _run(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    try:
        # The function's replicas die with it. One that outlived the group would wait, with
        # Python's lock held, for a thread of gloo's that waits for the lock.
        torch.save(function(rank), folder / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
