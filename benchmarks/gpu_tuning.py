"""Time steps on a GPU with other choices of the Triton kernels, beside the ones in force.

    python benchmarks/gpu_tuning.py [--output FILE]
    python benchmarks/gpu_tuning.py --device cpu        # tries the script

Each variant is compiled in a process of its own, all at once; then they are timed one after the
other, replayed by CUDA graphs. Of the precisions of products it is also said how far a hundred
steps in float32 end from the same ones in float64, and from the manifold.
"""

import argparse
import importlib
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import geoopt
import torch
from gpu_steps import draw, optimizer_for
from gpu_timing import eager_and_graph

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.linalg.dense import orthogonality_error

THREE_TF32 = {"kernels.layout PRECISION": "tf32x3"}
IN_FLIGHT = {f"kernels.{module} IN_FLIGHT_OF_MANY": 4096 for module in ("layout", "gram")}
OF_SMALL = "small"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "3 x TF32": THREE_TF32,
    "more in flight": IN_FLIGHT,
    "3 x TF32, more in flight": {**THREE_TF32, **IN_FLIGHT},
    "3 x TF32, tl.dot from k = 3 on": {**THREE_TF32, "launching _MOST_BY_ENTRY": 2},
    "k = 8 by entry": {"launching _MOST_BY_ENTRY": 8},
    "more programs of bases": {**THREE_TF32, **IN_FLIGHT, "sizes _SMALL": 16},
    "shorter programs": {"launching _FEWEST_ROWS": 16, "launching _MOST_SPLITS": 32},
    f"{OF_SMALL}: any registers": {"launching _FEW_REGISTERS": 255},
    f"{OF_SMALL}: many kernels": {"launching _FEW_ROWS": 0},
    f"{OF_SMALL}: up to 128 rows": {"launching _FEW_ROWS": 128},
}
"""Constants of modules of the backend, and their other values."""
LARGE = ((512, 1), (512, 8), (1024, 8), (4096, 8), (512, 16), (4096, 16), (512, 4), (4096, 4))
FEW = ((64, 1, 544), (64, 8, 544), (64, 1, 1), (64, 8, 1), (128, 1, 1), (128, 8, 1), (128, 16, 1))
"""Size and rank, and how many: one matrix is real, several are complex."""
STEPS = {"cuda": ((1024, 8), (4096, 16))}
TINY = ((32, 2),)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; `--device cpu` tries the script")
    context, count = multiprocessing.get_context("spawn"), len(options.variants)
    together = context.Barrier(count), context.Lock()
    # Where a process dies this ends with an error.
    with ProcessPoolExecutor(count, context, begin, together) as pool:
        found = pool.map(measure, options.variants, repeat(options.device))
        report = dict(zip(options.variants, found, strict=True))
    for name, values in report.items():
        print(f"{name}: {', '.join(f'{label} {value}' for label, value in values.items())}")
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1))
    return report


def begin(compiled: Any, alone: Any) -> None:
    """Keep what all processes wait for, and what one at a time has."""
    global _compiled, _alone
    _compiled, _alone = compiled, alone


def measure(name: str, device: str) -> dict[str, Any]:
    """Return what is found of a variant."""
    try:
        for place, value in VARIANTS[name].items():
            patch(*place.split(), value)
        steps = {label(*case): tried(taken, device, *case) for case in cases(name, device)}
    finally:
        _compiled.wait()
    with _alone:
        found = {label: tried(timed, step, device) for label, step in steps.items()}
        if "PRECISION" in str(VARIANTS[name]) or not VARIANTS[name]:
            for n, k in STEPS.get(device, TINY):
                found[f"errors n={n} k={k}"] = tried(errors, n, k, device)
    return found


def tried(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns, or what it raises: one case must not cost the others."""
    try:
        return function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"


def cases(name: str, device: str) -> tuple[tuple[int, ...], ...]:
    """Return what is timed of a variant: what it changes."""
    if device != "cuda":
        return TINY
    if not VARIANTS[name]:
        return LARGE + FEW
    return FEW if name.startswith(OF_SMALL) else LARGE


def label(n: int, k: int, count: int = 1) -> str:
    return f"n={n} k={k}" if count == 1 else f"{count} of n={n} k={k}"


def taken(device: str, n: int, k: int, count: int = 1) -> Callable[[], object]:
    """Take a step, which compiles its kernels; return what takes more of them."""
    batch, dtype = ((), torch.float32) if count == 1 else ((count,), torch.complex64)
    problem = draw(n, batch, dtype, device)
    step = optimizer_for([problem.x], [problem.d], ProjUNNRiemannianSGD, k).step
    step()
    return step


def timed(step: Callable[[], object] | str, device: str) -> float | str:
    if isinstance(step, str):
        return step
    times = eager_and_graph(step, device)
    return round(times.get("graph", times["eager"]), 4)


def patch(module: str, constant: str, value: Any) -> None:
    """Give a constant of a module of the backend another value, before kernels are compiled."""
    owner = importlib.import_module(f"geoopt_projunn.backends.triton.{module}")
    kind = type(getattr(owner, constant))
    setattr(owner, constant, kind(value))


def errors(n: int, k: int, device: str) -> str:
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(n, n, device=device, dtype=torch.float64))[0].contiguous()
    ends = []
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator(device).manual_seed(1)
        p = geoopt.ManifoldParameter(x.to(dtype, copy=True), manifold=LowRankUnitary(k))
        optimizer = ProjUNNRiemannianSGD([p], lr=0.3)
        for _ in range(100):
            p.grad = torch.randn(n, n, device=device, generator=generator).div_(n**0.5).to(dtype)
            optimizer.step()
        ends.append(p.detach().double())
    moved, apart = (float(torch.linalg.matrix_norm(ends[1] - y)) for y in (x, ends[0]))
    off = float(orthogonality_error(ends[0]))
    return f"moved by {moved:.2g}, then {apart:.1e} from float64 and {off:.1e} off the manifold"


if __name__ == "__main__":
    main()
