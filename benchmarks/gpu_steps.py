"""What the benchmark of a GPU asks about steps."""

import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from unittest.mock import patch

import torch
import update
from gpu_report import OK
from gpu_timing import Cases, bandwidth, eager_and_graph, milliseconds
from update_methods import ADAM, TANGENT, optimizer_for
from update_problem import Problem, draw

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends
from geoopt_projunn.linalg.dense import estimate_orthogonality_error

RULES = {"SGD": (ProjUNNRiemannianSGD, TANGENT), "Adam": (ProjUNNRiemannianAdam, ADAM)}
"""The optimizers, and the passes that a step makes over memory of the size of the matrix."""
SIZES = (4096, 512, 16384, 1024, 256, 2048, 8192, 32768)
"""Most important first: a part that runs out of time ends where it is."""
SMALL = (32,)
_TRITON = "geoopt_projunn.backends.triton"


def environment(device: str) -> Cases:
    """Say what this is measured on and with."""
    yield "python", platform.python_version
    for name in ("torch", "triton", "numpy", "geoopt", "geoopt_projunn", "scipy", "matplotlib"):
        yield name, lambda name=name: getattr(__import__(name), "__version__", "yes")
    yield "backends", backends.available
    yield "launches in C++", lambda: find_spec(f"{_TRITON}._launches") is not None
    if device == "cuda":
        yield "device", _device


def _device() -> str:
    found = torch.cuda.get_device_properties(0)
    gib, l2 = found.total_memory >> 30, found.L2_cache_size >> 20
    return f"{found.name}, {found.multi_processor_count} SM, {gib} GiB, L2 {l2} MiB"


def compiling(device: str) -> Cases:
    """Take a step of each kind that is timed.

    Triton keeps on disk what it has compiled: what follows finds it there.
    """
    kinds = [(rule, {"k": k}) for rule in RULES for k in (1, 4, 8, 16)] + _SETTINGS
    # Tiles of large matrices are longer.
    sizes = (512, 4096) if device == "cuda" else SMALL
    jobs = [(device, n, *kind) for kind in kinds for n in sizes]
    yield "steps", lambda: in_processes(_one_step, jobs if device == "cuda" else jobs[:1])


def in_processes(function: Callable[..., None], jobs: list[tuple]) -> str:
    """Call a function with the arguments of each job, in as many processes as processors."""
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), context) as pool:
        for done in [pool.submit(function, *job) for job in jobs]:
            done.result()
    return OK


def _one_step(device: str, n: int, rule: str, options: dict) -> None:
    step_of(draw(n, device=device), rule, **options)()


_SETTINGS: list[tuple[str, dict]] = [
    *(("SGD", {"k": k, "retraction": name}) for k in (1, 4) for name in ("polar", "cayley")),
    ("SGD", {"k": 1, "sketch": "lsi"}),
    ("SGD", {"k": 2, "sketch": "column"}),
    ("SGD", {"k": 1, "momentum": 0.9}),
    ("Adam", {"k": 1, "second_moment": "scalar"}),
]


def waiting(device: str) -> Cases:
    """Take steps under the mode in which torch raises where the host waits."""
    settings = [*((rule, {"k": k}) for k in (1, 4, 16) for rule in RULES), *_SETTINGS]
    for batch in ((), (32,)):
        for rule, options in settings:
            yield f"{rule} {options} batch={batch}", _without_waiting(device, batch, rule, options)


def _without_waiting(device: str, batch: tuple[int, ...], rule: str, options: dict) -> Callable:
    def step_twice() -> str:
        n = 256 if device == "cuda" else SMALL[0]
        step = step_of(draw(n, batch, device=device), rule, **options)
        step()  # makes the state, and may wait
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        return OK

    return step_twice


def times(device: str) -> Cases:
    """Time steps over the floor, the passes of each at the speed of a copy of its matrix."""
    for n in SIZES if device == "cuda" else SMALL:
        yield f"n={n} copy, GB/s", lambda n=n: bandwidth(drawn(n, device).x) / 1e9
        for rule, k in _TIMED:
            yield f"n={n} {rule} k={k}", lambda n=n, rule=rule, k=k: _over_floor(n, device, rule, k)


_TIMED = (("SGD", 1), ("SGD", 8), ("Adam", 1), ("Adam", 8), ("SGD", 4), ("SGD", 16))


def _over_floor(n: int, device: str, rule: str, k: int) -> dict[str, float]:
    problem = drawn(n, device)
    _, passes = RULES[rule]
    found = eager_and_graph(step_of(problem, rule, k), device)
    found["floor"] = 1e3 * passes * problem.bytes_of_pass / bandwidth(problem.x)
    found["over floor"] = min(found["eager"], found.get("graph", found["eager"])) / found["floor"]
    return found


def launches(device: str) -> Cases:
    """Count the kernels of a step, and name those that take longest."""
    for n in (4096, 512) if device == "cuda" else SMALL:
        for rule, k in (("SGD", 1), ("SGD", 4), ("SGD", 16), ("Adam", 1)):

            def count(n: int = n, rule: str = rule, k: int = k) -> dict[str, object]:
                return _kernels(drawn(n, device), device, rule, k)

            yield f"n={n} {rule} k={k}", count


def _kernels(problem: Problem, device: str, rule: str, k: int) -> dict[str, object]:
    step = step_of(problem, rule, k)
    for _ in range(3):
        step()
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[kind.CUDA if device == "cuda" else kind.CPU]
    ) as profile:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    is_cuda = torch.autograd.DeviceType.CUDA
    events = [e for e in profile.events() if device != "cuda" or e.device_type == is_cuda]
    microseconds: Counter[str] = Counter()
    for event in events:
        spent = event.device_time if device == "cuda" else event.cpu_time
        microseconds[event.name[:40]] += spent
    longest = {name: round(spent, 1) for name, spent in microseconds.most_common(14)}
    return {"launches": len(events), "microseconds of the longest": longest}


def compared(device: str) -> Cases:
    """Take the same steps by every backend that serves the device."""
    names = [name for name in backends.available() if name != "cpu" or device == "cpu"]
    for n in (512, 4096) if device == "cuda" else SMALL:
        for rule, k in (("SGD", 1), ("SGD", 8), ("Adam", 1)):
            for name in names:

                def measure(n: int = n, rule: str = rule, k: int = k, name: str = name) -> object:
                    with backends.use(name):
                        return eager_and_graph(step_of(drawn(n, device), rule, k), device)

                yield f"n={n} {rule} k={k} {name}", measure


def host(device: str) -> Cases:
    """Time what the host does in a step, beside steps of torch's optimizers."""
    n = 512 if device == "cuda" else SMALL[0]
    for rule in RULES:
        for k in (1, 8):
            yield f"{rule} k={k}", lambda rule=rule, k=k: _on_host(drawn(n, device), rule, k)
    for kind in (torch.optim.SGD, torch.optim.Adam):

        def step(kind: type[torch.optim.Optimizer] = kind) -> float:
            p = torch.nn.Parameter(drawn(n, device).x.clone())
            p.grad = torch.zeros_like(p)
            return milliseconds(kind([p], lr=1e-3).step)

        yield f"torch's {kind.__name__}", step


def _on_host(problem: Problem, rule: str, k: int) -> dict[str, float]:
    step = step_of(problem, rule, k)
    found = {"a step": milliseconds(step)}
    if problem.x.is_cuda:
        with patch(f"{_TRITON}.launches.Launches.start", lambda *_: None):
            found["without its launches"] = milliseconds(step)
    return found


def peers(device: str) -> Cases:
    """Time ours beside geoopt's optimizers and POGO, by the benchmark of updates."""
    for n in (1024, 512, 4096) if device == "cuda" else SMALL:
        yield f"n={n}, ms and over ours", lambda n=n: _updates(n, device)


def _updates(n: int, device: str) -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = "0.7" if device == "cuda" else "0.01"
        methods = ["--methods", "SGD, k = 1", "geoopt", "POGO", "torch orthogonal, cayley"]
        limits = ["--rounds", "5", "--budget", seconds]
        where = ["--device", device, "--sizes", str(n), "--output", folder]
        report = update.main([*where, *limits, *methods])
    (ours,) = (r for r in report.results if r.method == update.OURS)
    return {r.method: (r.ms, r.over(ours)) for r in report.results if r.kind != "floor"}


def tf32(device: str) -> Cases:
    """Show what TF32 does to a product, and that it does nothing to a step."""
    n = 512 if device == "cuda" else SMALL[0]

    def probe() -> float:
        return float(estimate_orthogonality_error(drawn(n, device).x)) / n**0.5

    def product() -> float:
        x = drawn(n, device).x
        return float(torch.linalg.matrix_norm(x.mT @ x - torch.eye(n, device=device)))

    def steps() -> float:
        optimizer = optimizer_of(drawn(n, device), "SGD", 4)
        for _ in range(100):
            optimizer.step()
        (p,) = optimizer.param_groups[0]["params"]
        x = p.detach().double()
        return float(torch.linalg.matrix_norm(x.mT @ x - torch.eye(n, device=device).double()))

    for precision in ("highest", "high"):

        def within(function: Callable[[], float], precision: str = precision) -> float:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            try:
                return function()
            finally:
                torch.set_float32_matmul_precision(before)

        for name, function in (
            ("probe of a point", probe),
            ("torch's own product", product),
            ("100 steps", steps),
        ):
            yield f"{precision}: {name}", lambda f=function, within=within: within(f)


@lru_cache(maxsize=1)
def drawn(n: int, device: str) -> Problem:
    """Draw one real matrix; the last one is kept."""
    return draw(n, device=device)


def optimizer_of(problem: Problem, rule: str, k: int, **options: object) -> torch.optim.Optimizer:
    """Return an optimizer of the point of a problem, which has its gradient."""
    return optimizer_for([problem.x], [problem.d], RULES[rule][0], k, **options)


def step_of(problem: Problem, rule: str, k: int, **options: object) -> Callable[[], object]:
    """Return what takes a step."""
    return optimizer_of(problem, rule, k, **options).step
