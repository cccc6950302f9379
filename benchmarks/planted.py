r"""Regress on a planted matrix with 128 orthonormal rows of length 512, by steps of any rank.

Targets are those of a random matrix of that kind, from mini-batches of fresh Gaussian inputs, so
that the gradient's noise vanishes at the solution. All methods start at the same point, see the
same batches and take as many steps; each has its best learning rate of a grid. The table has the
population loss at the end, \|W - Q\|²_F / 128, and the milliseconds of an update alone. The rows of
a square matrix are what one would train without rectangular points.

    python benchmarks/planted.py
    python benchmarks/planted.py --smoke         # seconds, for a test
"""

import argparse
import math
import time
from dataclasses import dataclass

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from torch import Tensor
from tqdm import tqdm

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD

RATES = {0.0: (0.1, 0.3, 0.6), 0.9: (0.02, 0.05, 0.1)}
"""By momentum."""
RANKS = (1, 4, 16)


@dataclass(frozen=True)
class Method:
    """A manifold, an optimizer, and whether the matrix is the first rows of a square one."""

    manifold: Manifold
    optimizer: type[torch.optim.Optimizer]
    square: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a method reached with one momentum and learning rate."""

    method: str
    momentum: float
    lr: float
    loss: float
    ms: float


def methods(rows: int) -> dict[str, Method]:
    """Return what takes part, by name."""
    found = {
        "geoopt EuclideanStiefel": Method(geoopt.EuclideanStiefel(), geoopt.optim.RiemannianSGD)
    }
    ranks = [k for k in RANKS if k <= rows]  # a smoke test has few
    for k in ranks:
        found[f"LowRankStiefel, k = {k}"] = Method(LowRankStiefel(k), ProjUNNRiemannianSGD)
    k = ranks[-1]
    found[f"rows of a square, LowRankUnitary, k = {k}"] = Method(
        LowRankUnitary(k), ProjUNNRiemannianSGD, square=True
    )
    return found


def fit(
    name: str, method: Method, momentum: float, lr: float, options: argparse.Namespace
) -> Outcome:
    """Train from a seeded start; geoopt has tall points, which are the rows' transpose."""
    generator = torch.Generator().manual_seed(options.seed)
    n, rows = options.columns, options.rows

    def drawn() -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q

    planted, start = drawn()[:, :rows], drawn()
    start = start if method.square else start[:, :rows].contiguous()
    p = geoopt.ManifoldParameter(start, manifold=method.manifold)
    optimizer = method.optimizer([p], lr=lr, momentum=momentum)
    p.grad = torch.zeros_like(start)
    spent, grad = 0.0, p.grad[:, :rows]
    with torch.no_grad():
        for _ in range(options.steps):
            x = torch.randn(options.batch, n, generator=generator)
            difference = p.as_subclass(Tensor)[:, :rows] - planted
            grad.copy_(x.mT @ (x @ difference) / options.batch)
            begun = time.perf_counter()
            optimizer.step()
            spent += time.perf_counter() - begun
        loss = float((p.as_subclass(Tensor)[:, :rows] - planted).square().sum() / rows)
    return Outcome(name, momentum, lr, loss, 1e3 * spent / options.steps)


def table(outcomes: list[Outcome]) -> str:
    """Return the best learning rate of each method, with and without momentum."""
    lines = ["| method | momentum | lr | loss | update, ms |", "|---|---|---|---|---|"]
    for name, momentum in dict.fromkeys((o.method, o.momentum) for o in outcomes):
        of_method = [o for o in outcomes if (o.method, o.momentum) == (name, momentum)]
        best = min(of_method, key=lambda o: math.inf if math.isnan(o.loss) else o.loss)
        lines.append(f"| {name} | {momentum:g} | {best.lr:g} | {best.loss:.1e} | {best.ms:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[Outcome]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.rows, options.columns, options.batch, options.steps = 4, 12, 48, 40
    torch.set_num_threads(1)
    due = [
        (name, method, momentum, lr)
        for name, method in methods(options.rows).items()
        if any(part in name for part in options.methods)
        for momentum, rates in RATES.items()
        for lr in rates
    ]
    outcomes = [fit(*one, options) for one in tqdm(due, unit="run")]
    print(table(outcomes))
    return outcomes


if __name__ == "__main__":
    main()
