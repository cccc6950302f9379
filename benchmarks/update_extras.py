"""What the update benchmark measures beside single matrices: batches, memory, bandwidth."""

import argparse
import statistics
from collections.abc import Callable

import torch
from memory import peak_bytes
from timing import timed
from update_methods import Update, optimizer_for
from update_problem import draw

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

KINDS = {"SGD, k = 1": ProjUNNRiemannianSGD, "Adam, k = 1": ProjUNNRiemannianAdam}
COUNT, SIZE = 32, 64
Measure = Callable[[dict[str, Update], int, float, str], dict[str, list[float]]]


def many_small(options: argparse.Namespace, measure: Measure) -> dict[str, tuple[float, float]]:
    """Return, in ms, a step of one small matrix and of many that share a group."""
    size = 32 if options.smoke else SIZE
    problem = draw(size, (COUNT,), options.dtype, options.device)
    updates = {}
    for name, kind in KINDS.items():
        for count in (1, COUNT):
            points, grads = list(problem.x[:count]), list(problem.d[:count])
            optimizer = optimizer_for(points, grads, kind, 1)
            updates[f"{name}, {count}"] = Update(optimizer.step)
    seconds = measure(updates, options.rounds, options.budget, f"{COUNT} small matrices")
    medians = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    return {name: (medians[f"{name}, 1"], medians[f"{name}, {COUNT}"]) for name in KINDS}


def peaks(n: int, options: argparse.Namespace) -> dict[str, float]:
    """Return what a step allocates at its peak, in units of the elements of the matrix.

    Beyond parameter, gradient and state.
    """
    problem = draw(n, (), options.dtype, options.device)
    found = {"n": float(n)}
    for name, kind in KINDS.items():
        optimizer = optimizer_for([problem.x], [problem.d], kind, 1)
        optimizer.step()  # makes the state
        found[name] = peak_bytes(optimizer.step, options.device) / (
            problem.x.numel() * problem.x.element_size()
        )
    return found


def copy_bandwidth(device: str, smoke: bool) -> float:
    """Return the bytes per second, read and written, of a copy too large for any cache."""
    # Not zeros, which a CPU need not read from memory.
    source = torch.ones(2**20 if smoke else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = [timed(lambda: target.copy_(source)) for _ in range(6)]
    return 2 * source.numel() / statistics.median(taken[1:])
