"""What the benchmark of a GPU asks about choices of the kernels, each beside another one."""

from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
from gpu_steps import RULES, SMALL, drawn, step_of
from gpu_timing import Cases, bandwidth, eager_and_graph
from update_problem import Problem, draw

from geoopt_projunn.backends.triton import support

_TRITON = "geoopt_projunn.backends.triton"
# How many matrices of which size and dtype, and the rank. Complex ones are those of convolutions.
_BATCHES = (
    (544, 64, torch.complex64, 1),
    (544, 64, torch.complex64, 8),
    (136, 256, torch.complex64, 1),
    (1, 64, torch.float32, 1),
    (1, 64, torch.float32, 8),
    (1, 128, torch.float32, 1),
    (1, 128, torch.float32, 8),
    (1, 128, torch.float32, 16),
    (136, 128, torch.float32, 8),
)
_TRIED = ((3, 32, torch.complex64, 1),)
# What is timed beside the choice in force: up to which size, and how many rows a small matrix has.
_OTHER_CHOICES = ((64, "by many kernels", 0), (128, "by one kernel", 128))


def overlapping(device: str) -> Cases:
    """Take steps whose kernels overlap, and the same ones with kernels that wait for the ends."""
    for n in (512, 256, 1024) if device == "cuda" else SMALL:
        for rule, k in (("SGD", 1), ("SGD", 8), ("Adam", 1)):

            def step(n: int = n, rule: str = rule, k: int = k) -> Callable[[], object]:
                return step_of(drawn(n, device), rule, k)

            for how in (True, False):
                name = f"n={n} {rule} k={k}{'' if how else ', kernels that do not overlap'}"
                yield name, _chosen(device, step, "passing.overlaps", lambda *_, how=how: how)


def batches(device: str) -> Cases:
    """Step the matrices of convolutions over the floor of their bytes; small ones in two ways."""
    for count, n, dtype, k in _BATCHES if device == "cuda" else _TRIED:
        for rule, (_, passes) in RULES.items():
            name = f"{count} x {n} x {n} {str(dtype)[6:]}, {rule} k={k}"
            problem = draw(n, (count,), dtype, device)

            def step(problem: Problem = problem, rule: str = rule, k: int = k):  # noqa: ANN202
                return step_of(problem, rule, k)

            def measure(problem: Problem = problem, passes: int = passes, step=step):  # noqa: ANN001, ANN202
                found = eager_and_graph(step(), device)
                found["floor"] = 1e3 * passes * problem.bytes_of_pass / bandwidth(problem.x)
                return found

            yield name, measure
            for most, how, rows in _OTHER_CHOICES:
                if n <= most:
                    yield f"{name}, {how}", _chosen(device, step, "launching._FEW_ROWS", rows)
                    break


def _chosen(
    device: str, step: Callable[[], Callable[[], object]], place: str, value: object
) -> Callable[[], dict[str, float]]:
    """Return what times steps that are taken with another value in a module of the backend."""

    def measure() -> dict[str, float]:
        with ExitStack() as patched:
            if support.version() is not None:
                patched.enter_context(patch(f"{_TRITON}.{place}", value))
                # Launches that are recorded stay those of the first step.
                patched.enter_context(patch.dict(f"{_TRITON}.programs._programs", clear=True))
            return eager_and_graph(step(), device)

    return measure
