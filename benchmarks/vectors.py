"""Time steps with each width of vectors that the processor has, beside torch's operations.

The C++ kernels choose the widest. With vectors of 32 bytes they are those of a processor that has
AVX2 and no AVX-512. All take turns in one run, one thread; medians.

    python benchmarks/vectors.py
    python benchmarks/vectors.py --smoke     # seconds, for a test
"""

import argparse
import statistics

import torch
from timing import timed
from tqdm import tqdm
from update_methods import optimizer_for
from update_problem import draw

from geoopt_projunn import ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends.cpu import kernels

TORCH = "torch's operations"


def widths() -> list[int]:
    """Return the bytes of vectors that the kernels can make use of here, the widest first."""
    use = kernels.kernels.use_vectors
    widest = use(16)
    use(widest)
    return [width for width in (64, 32, 16) if width <= widest]


def measure(n: int, k: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a step by each width, and by torch's operations."""
    problem = draw(n, (), torch.float32, "cpu")
    step = optimizer_for([problem.x], [problem.d], ProjUNNRiemannianSGD, k).step
    widest = widths()[0]
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for width in widths():
            kernels.kernels.use_vectors(width)
            step()  # fetches what the others have driven out
            seconds.setdefault(f"{width} bytes", []).append(timed(step, 3))
        kernels.kernels.use_vectors(widest)
        with backends.use("reference"):
            step()
            seconds.setdefault(TORCH, []).append(timed(step, 3))
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if kernels.LACK is not None:
        parser.error(f"the C++ kernels are missing: {kernels.LACK}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, rounds = ((32,), 2) if options.smoke else ((128, 512, 1024), 15)
    cases = [(n, k) for n in sizes for k in (1, 8, 16)]
    names = [*(f"{width} bytes" for width in widths()), TORCH]
    print("| n, k | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for n, k in tqdm(cases, unit="case"):
        found = measure(n, k, rounds)
        print(f"| {n}, {k} | " + " | ".join(f"{found[name]:.3g}" for name in names) + " |")


if __name__ == "__main__":
    main()
