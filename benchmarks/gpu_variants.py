"""What the benchmark of a GPU asks about choices of the kernels, each beside another one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from gpu_steps import RULES, SMALL, drawn, in_processes, optimizer_of, step_of
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
    other: str = ""
    """The way to take a step beside the one in force, if there is one."""

    def __str__(self) -> str:
        return f"{self.count} x {self.n} x {self.n} {str(self.dtype)[6:]}, {self.rule} k={self.k}"

    def draw(self, device: str) -> Problem:
        return draw(self.n, (self.count,), self.dtype, device)

    def ways(self) -> dict[str, int | None]:
        """Return how steps are taken, each with the `_FEW_ROWS` that brings it about."""
        return {"": None, f", by {self.other}": _WAYS[self.other]} if self.other else {"": None}


_WAYS = {"many kernels": 0, "one kernel": 128}
_C64, _F32 = torch.complex64, torch.float32
_BATCHES = (
    Batch(544, 64, _C64, "SGD", 1, "many kernels"),
    Batch(544, 64, _C64, "SGD", 8, "many kernels"),
    Batch(544, 64, _C64, "Adam", 1, "many kernels"),
    Batch(136, 256, _C64, "SGD", 1),
    Batch(136, 256, _C64, "Adam", 1),
    Batch(1, 64, _F32, "SGD", 1, "many kernels"),
    Batch(1, 64, _F32, "SGD", 8, "many kernels"),
    Batch(1, 128, _F32, "SGD", 1, "one kernel"),
    Batch(1, 128, _F32, "SGD", 8, "one kernel"),
    Batch(1, 128, _F32, "SGD", 16, "one kernel"),
    Batch(136, 128, _F32, "SGD", 8, "one kernel"),
)
_TRIED = (Batch(3, 32, _C64, "SGD", 1, "many kernels"),)


def overlapping(device: str) -> Cases:
    """Take steps whose kernels overlap, and the same ones with kernels that wait for the ends."""
    for n in (512, 256, 1024) if device == "cuda" else SMALL:
        for rule, k in (("SGD", 1), ("SGD", 8), ("Adam", 1)):
            for how in (True, False):
                name = f"n={n} {rule} k={k}{'' if how else ', kernels that do not overlap'}"
                yield name, partial(_overlapping, device, n, rule, k, how)


def _overlapping(device: str, n: int, rule: str, k: int, how: bool) -> dict[str, float]:
    with _changed("passing.overlaps", lambda *_: how):
        return eager_and_graph(step_of(drawn(n, device), rule, k), device)


def batches(device: str) -> Cases:
    """Step batches in each way, over the floor of their bytes; first say how far ways differ."""
    some = _BATCHES if device == "cuda" else _TRIED
    for batch in (batch for batch in some if batch.other):
        yield f"{batch}, largest difference", partial(_difference, batch, device)
    for batch in some:
        for way, rows in batch.ways().items():
            yield f"{batch}{way}", partial(_over_floor, batch, device, rows)


def compiling(device: str) -> Cases:
    """Take a step of each batch in each way: Triton keeps what it has compiled."""
    some = _BATCHES if device == "cuda" else _TRIED
    jobs = [(device, batch, rows) for batch in some for rows in batch.ways().values()]
    yield "batches", lambda: in_processes(_one_step, jobs)


def _one_step(device: str, batch: Batch, rows: int | None) -> None:
    with _with_few_rows(rows):
        step_of(batch.draw(device), batch.rule, batch.k)()


def _difference(batch: Batch, device: str) -> float:
    """Return the largest difference of an entry after ten steps in two ways."""
    ends = []
    for rows in batch.ways().values():
        torch.manual_seed(0)
        optimizer = optimizer_of(batch.draw(device), batch.rule, batch.k)
        with _with_few_rows(rows):
            for _ in range(10):
                optimizer.step()
        ends.append(optimizer.param_groups[0]["params"][0].detach())
    return max(float((end - ends[0]).abs().max()) for end in ends)


def _over_floor(batch: Batch, device: str, rows: int | None) -> dict[str, float]:
    problem, (_, passes) = batch.draw(device), RULES[batch.rule]
    with _with_few_rows(rows):
        found = eager_and_graph(step_of(problem, batch.rule, batch.k), device)
    found["floor"] = 1e3 * passes * problem.bytes_of_pass / bandwidth(problem.x)
    return found


def _with_few_rows(rows: int | None) -> AbstractContextManager[object]:
    return nullcontext() if rows is None else _changed("launching._FEW_ROWS", rows)


@contextmanager
def _changed(place: str, value: object) -> Iterator[None]:
    """Give a module of the backend another value."""
    with ExitStack() as patched:
        if support.version() is not None:
            patched.enter_context(patch(f"{_TRITON}.{place}", value))
            # Launches that are recorded stay those of the first step.
            patched.enter_context(patch.dict(f"{_TRITON}.programs._programs", clear=True))
        yield
