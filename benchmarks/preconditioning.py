r"""Precondition gradients by the covariance of their rows, before the steps of rank k.

The gradient of a linear layer is G = E Xᵀ, with inputs X. If directions of the inputs differ in
size, the small ones are learnt last. K-FAC and Shampoo undo this: here the step follows
G (C + ε)^-α, with C the running mean of GᵀG, scaled to a mean eigenvalue of 1. The package does
not offer it; this shows what it would gain and lose. C and its power are made densely, in O(n³):
steps are counted, not timed. SGD without momentum.

    python benchmarks/preconditioning.py            # both tables, a quarter of an hour
    python benchmarks/preconditioning.py --smoke    # seconds, for a test
"""

import argparse
import math
from collections.abc import Sequence
from itertools import product

import torch
from geoopt import ManifoldParameter
from problems import PROBLEMS, Problem, regression
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

POWERS = (0.0, 0.5, 1.0)
RATES = (0.1, 0.18, 0.3, 0.55, 1.0, 1.8, 3.0, 5.5, 10.0)
DECAY, FLOOR, EVERY = 0.99, 0.1, 5
TARGET, MOST_STEPS = 1e-3, 1500
# A suboptimality of float32 data is rounding below this share of the first; and what diverges.
LEAST, MOST = 1e-9, 100.0


class Preconditioner:
    """The running covariance of the rows of a gradient, (b, n, n), and its power."""

    def __init__(self, power: float) -> None:
        self._power, self._steps = power, 0
        self._covariance = self._of_power = torch.zeros(())

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        """Return a gradient times the power, of mean eigenvalue 1."""
        if self._power == 0:
            return grad
        gram = grad.mH @ grad
        gram = gram / gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        self._covariance = DECAY * self._covariance + (1 - DECAY) * gram
        if self._steps % EVERY == 0:
            values, vectors = torch.linalg.eigh(self._covariance / (1 - DECAY ** (self._steps + 1)))
            values = (values.clamp(min=0) + FLOOR) ** -self._power
            values = values / values.mean(-1, keepdim=True)
            self._of_power = (vectors * values[..., None, :].to(vectors.dtype)) @ vectors.mH
        self._steps += 1
        return grad @ self._of_power


class Training:
    """Some problems of one size as a batch, one seed each."""

    def __init__(self, problems: Sequence[Problem], k: int, power: float, lr: float) -> None:
        self._problems = problems
        start = torch.stack([problem.start for problem in problems])
        self._weight = ManifoldParameter(start, manifold=LowRankUnitary(k))
        self.optimizer = ProjUNNRiemannianSGD([self._weight], lr=lr)
        self._preconditioned = Preconditioner(power)
        self._first = self._suboptimalities()

    def _suboptimalities(self) -> list[float]:
        points = self._weight.detach()
        return [one.suboptimality(x) for one, x in zip(self._problems, points, strict=True)]

    def step(self) -> None:
        points = self._weight.detach()
        gradients = [one.gradient(x) for one, x in zip(self._problems, points, strict=True)]
        self._weight.grad = self._preconditioned(torch.stack(gradients))
        self.optimizer.step()

    def loss(self) -> float:
        """Return the suboptimality over that of the start, the geometric mean of all seeds."""
        shares = [now / at for now, at in zip(self._suboptimalities(), self._first, strict=True)]
        logs = [math.log(min(max(share, LEAST), MOST)) for share in shares]
        return math.exp(sum(logs) / len(logs))


def ends(k: int, steps: int, power: float, lr: float, problems: Sequence[Problem]) -> float:
    """Return the loss after some steps, with a rate that falls to zero."""
    training = Training(problems, k, power, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda at: 1 - at / steps)
    for _ in range(steps):
        training.step()
        schedule.step()
    return training.loss()


def steps_to(
    target: float, k: int, power: float, lr: float, problem: Problem, most: float
) -> float:
    """Return after how many steps of a constant rate the loss is below a target."""
    training, steps, lowest = Training([problem], k, power, lr), 0, [1.0]
    while steps < most:
        training.step()
        steps += 1
        if steps % EVERY:
            continue
        lowest.append(training.loss())
        if lowest[-1] < target:
            return steps
        # Rates that are too large sway about a level.
        if lowest[-1] > 2 or (len(lowest) > 60 and lowest[-1] > 0.5):
            break
    return math.inf


def heads(first: str) -> str:
    columns = ["none" if power == 0 else f"α = {power:g}" for power in POWERS]
    return f"| {first} | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="of regressions")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    n, k, steps, seeds, rates = (
        (8, 2, 5, 1, RATES[2:4]) if options.smoke else (48, 8, 200, 3, RATES)
    )

    print(heads("loss at the end over that at the start, at the best rate"))
    for name, draw in tqdm(PROBLEMS.items(), unit="problem", leave=False):
        found = dict.fromkeys(POWERS, math.inf)
        for power, lr in product(POWERS, rates):
            drawn = [draw(torch.Generator().manual_seed(seed), n) for seed in range(seeds)]
            # min() keeps the first where the second is not a number.
            found[power] = min(found[power], ends(k, steps, power, lr, drawn))
        tqdm.write(f"| {name} | " + " | ".join(f"{end:.1e}" for end in found.values()) + " |")

    most, target = (20, 0.9) if options.smoke else (MOST_STEPS, TARGET)
    print(f"\n{heads(f'steps to {target:g}, regression, batches of 32')}")
    sizes = [(n, k)] if options.smoke else product(options.sizes, (8, 16))
    for n, k in tqdm(list(sizes), unit="row", leave=False):
        cells = []
        for power in POWERS:
            best = math.inf
            for lr in sorted(rates, key=lambda lr: abs(math.log(lr))):
                drawn = regression(torch.Generator().manual_seed(0), n, label_noise=0.0, batch=32)
                best = min(best, steps_to(target, k, power, lr, drawn, min(best, most)))
            cells.append(f"{best:g}")
        tqdm.write(f"| n = {n}, k = {k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
