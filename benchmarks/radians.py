"""Compare steps by a set angle with steps by a multiple of the gradient.

Regression onto a rotation from mini-batches of 32: loss at the end relative to the start, the
geometric mean over two seeds. Nesterov momentum 0.9; rates decay linearly to zero.

    python benchmarks/radians.py                     # the table, about a minute
    python benchmarks/radians.py --smoke             # seconds, for a test
"""

import argparse
import math

import torch
from geoopt import ManifoldParameter
from problems import rotation

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

BATCH = 32
RATES: dict[str | None, tuple[float, ...]] = {
    None: (0.1, 0.3, 1.0),
    "angle": (0.2, 0.35, 0.5, 0.75),
    "spectral": (0.2, 0.35, 0.5, 0.75),
}


def regress(n: int, k: int, steps: int, normalize: str | None, lr: float, seed: int) -> float:
    """Return the population loss after some steps relative to that at the start."""
    generator = torch.Generator().manual_seed(seed)
    target, start = rotation(generator, n), rotation(generator, n)
    # The covariance of the inputs has eigenvalues from 1 to 0.01.
    root = rotation(generator, n) * torch.logspace(0, -1, n)

    def loss(w: torch.Tensor) -> float:
        return float(((w - target) @ root).square().sum())

    p = ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
    optimizer = ProjUNNRiemannianSGD([p], lr=lr, momentum=0.9, nesterov=True, normalize=normalize)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        x = root @ torch.randn(n, BATCH, generator=generator)
        p.grad = (p.detach() - target) @ x @ x.mT / BATCH
        optimizer.step()
        schedule.step()
    return loss(p.detach()) / loss(start)


def table(n: int, budgets: list[tuple[int, int]], seeds: int) -> str:
    """Return the losses for ranks and numbers of steps, in Markdown."""
    heads = [f"{name or 'SGD'} {lr:g}" for name, rates in RATES.items() for lr in rates]
    lines = ["| k, steps | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for k, steps in budgets:
        ends = []
        for name, rates in RATES.items():
            for lr in rates:
                logs = [math.log(regress(n, k, steps, name, lr, seed)) for seed in range(seeds)]
                ends.append(f"{math.exp(sum(logs) / seeds):.1e}")
        lines.append(f"| {k}, {steps} | " + " | ".join(ends) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test")
    parser.add_argument("--size", type=int, default=48)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.smoke:
        print(table(8, [(1, 5)], seeds=1))
    else:
        print(table(options.size, [(1, 300), (4, 150), (12, 80)], seeds=2))


if __name__ == "__main__":
    main()
