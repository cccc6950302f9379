"""What the benchmark of a GPU asks about choices of the kernels, each beside another one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from gpu_steps import RULES, SMALL, drawn, in_processes, step_of
from gpu_timing import Cases, bandwidth, eager_and_graph
from update_problem import Problem, draw

from geoopt_projunn.backends.triton import support

_TRITON = "geoopt_projunn.backends.triton"


class Batch(NamedTuple):
    """Matrices that are stepped; complex ones are those of convolutions."""

    count: int
    n: int
    dtype: torch.dtype
    rule: str
    k: int

    def __str__(self) -> str:
        return f"{self.count} x {self.n} x {self.n} {str(self.dtype)[6:]}, {self.rule} k={self.k}"

    def draw(self, device: str) -> Problem:
        return draw(self.n, (self.count,), self.dtype, device)

    def choices(self) -> Iterator[tuple[str, int]]:
        """Yield how steps may be taken other than as they are, and how many rows are few then."""
        if self.n <= 64:
            yield "by many kernels", 0
        elif self.n <= 128:
            yield "by one kernel", 128


_C64, _F32 = torch.complex64, torch.float32
_BATCHES = (
    *(Batch(544, 64, _C64, *how) for how in (("SGD", 1), ("SGD", 8), ("Adam", 1))),
    *(Batch(136, 256, _C64, rule, 1) for rule in RULES),
    *(Batch(1, 64, _F32, "SGD", k) for k in (1, 8)),
    *(Batch(1, 128, _F32, "SGD", k) for k in (1, 8, 16)),
    Batch(136, 128, _F32, "SGD", 8),
)
_TRIED = (Batch(3, 32, _C64, "SGD", 1),)


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
    """Step batches over the floor of their bytes, and as they would be stepped otherwise."""
    for batch in _BATCHES if device == "cuda" else _TRIED:
        yield str(batch), partial(_over_floor, batch, device)
        for how, rows in batch.choices():
            step = partial(_step_of_batch, batch, device)
            yield f"{batch}, {how}", _chosen(device, step, "launching._FEW_ROWS", rows)


def _step_of_batch(batch: Batch, device: str) -> Callable[[], object]:
    return step_of(batch.draw(device), batch.rule, batch.k)


def _over_floor(batch: Batch, device: str) -> dict[str, float]:
    problem, (_, passes) = batch.draw(device), RULES[batch.rule]
    found = eager_and_graph(step_of(problem, batch.rule, batch.k), device)
    found["floor"] = 1e3 * passes * problem.bytes_of_pass / bandwidth(problem.x)
    return found


def compiling(device: str) -> Cases:
    """Take a step of each batch in each way: Triton keeps what it has compiled."""
    some = _BATCHES if device == "cuda" else _TRIED
    few = dict.fromkeys(batch._replace(count=min(batch.count, 4)) for batch in some)
    ways = [(batch, rows) for batch in few for rows in (None, *dict(batch.choices()).values())]
    yield "batches", lambda: in_processes(_one_step, [(device, *way) for way in ways])


def _one_step(device: str, batch: Batch, rows: int | None) -> None:
    with ExitStack() as patched:
        if rows is not None and support.version() is not None:
            patched.enter_context(patch(f"{_TRITON}.launching._FEW_ROWS", rows))
        _step_of_batch(batch, device)()


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
