"""What the update benchmark measures beside single matrices: batches and memory."""

import argparse
import statistics
from collections.abc import Callable

from memory import peak_bytes
from update_methods import Update, optimizer_for
from update_problem import draw

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

KINDS = {"SGD, k = 1": ProjUNNRiemannianSGD, "Adam, k = 1": ProjUNNRiemannianAdam}
COUNT, SIZE = 32, 64
Measure = Callable[[dict[str, Update], int, float, str], dict[str, list[float]]]


def many_small(options: argparse.Namespace, measure: Measure) -> dict[str, tuple[float, ...]]:
    """Return, in ms, a step of one small matrix, of many in one parameter, and of many alone."""
    size = 32 if options.smoke else SIZE
    problem = draw(size, (COUNT,), options.dtype, options.device)
    updates = {}
    for name, kind in KINDS.items():
        x, d = problem.x, problem.d
        for how, points, grads in (
            ("one", [x[0]], [d[0]]),
            ("batch", [x], [d]),
            ("apart", list(x), list(d)),
        ):
            updates[f"{name}, {how}"] = Update(optimizer_for(points, grads, kind, 1).step)
    seconds = measure(updates, options.rounds, options.budget, f"{COUNT} small matrices")
    medians = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    forms = "one", "batch", "apart"
    return {name: tuple(medians[f"{name}, {how}"] for how in forms) for name in KINDS}


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
