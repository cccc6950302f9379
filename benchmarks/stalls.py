"""Count the starts from which an optimizer ends where the Riemannian gradient does not vanish.

Consistent Procrustes problems, ½‖WA − B‖² with B = W*A, from Haar starts of the same determinant.
A run has stalled if the Riemannian gradient has not come down to a thousandth of what it was at
the start after 3000 steps whose rate decays linearly.

    python benchmarks/stalls.py                     # the table, some minutes
    python benchmarks/stalls.py --smoke             # seconds, for a test
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from geoopt import ManifoldParameter
from problems import rotation

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

STARTS = 24
STEPS = 3000
# Rates of Adam in the unit of entries: "scalar" takes the steps of "mean" at n times the rate.
METHODS: dict[str, tuple[Callable[..., Any], float, dict[str, Any]]] = {
    "SGD": (ProjUNNRiemannianSGD, 0.1, {"momentum": 0.9}),
    "SGD, angle": (
        ProjUNNRiemannianSGD,
        0.3,
        {"momentum": 0.9, "nesterov": True, "normalize": "angle"},
    ),
    "Adam, elementwise": (ProjUNNRiemannianAdam, 0.03, {"second_moment": "elementwise"}),
    "Adam, mean": (ProjUNNRiemannianAdam, 0.03, {"second_moment": "mean"}),
}


def stalled(name: str, n: int, k: int | None, steps: int, starts: int, seed: int = 0) -> int:
    """Return from how many starts a method ends at no stationary point."""
    kind, lr, options = METHODS[name]
    generator = torch.Generator().manual_seed(seed)
    points = [rotation(generator, n) for _ in range(2 * starts)]
    target, start = torch.stack(points[:starts]), torch.stack(points[starts:])
    a = torch.randn(starts, n, 2 * n, generator=generator) / (2 * n) ** 0.5
    gram = a @ a.mT

    def gradient(w: torch.Tensor) -> torch.Tensor:
        return (w - target) @ gram

    def length(w: torch.Tensor) -> torch.Tensor:
        product = w.mT @ gradient(w)
        return torch.linalg.matrix_norm(product - product.mT)

    p = ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
    optimizer = kind([p], lr=lr, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        p.grad = gradient(p.detach())
        optimizer.step()
        schedule.step()
    return int((length(p.detach()) > 1e-3 * length(start)).sum())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = (4,) if options.smoke else (4, 10, 32)
    steps, starts = (20, 2) if options.smoke else (STEPS, STARTS)
    cases = [(n, k) for n in sizes for k in (1, None)]
    print("| method | " + " | ".join(f"n={n}, k={k}" for n, k in cases) + " |")
    print("|---" * (1 + len(cases)) + "|")
    for name in METHODS:
        counts = [f"{stalled(name, n, k, steps, starts)} of {starts}" for n, k in cases]
        print(f"| {name} | " + " | ".join(counts) + " |", flush=True)


if __name__ == "__main__":
    main()
