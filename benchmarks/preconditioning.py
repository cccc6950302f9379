r"""Precondition gradients by the covariance of their rows, before the steps of rank k.

The gradient of a linear layer is G = E Xᵀ, with inputs X. If directions of the inputs differ in
size, the small ones are learnt last. K-FAC and Shampoo undo this. With C the running mean of GᵀG,
scaled to a mean eigenvalue of 1, two ways to do it on the manifold are compared:

* of the gradient: the step follows G (C + ε)^-α. At a solution with a residual G is not zero but
  normal, and this turns a part of it into a tangent one: the step does not end there.
* of the generator: the step follows x R Ω R with Ω = skewh(xᵀG) and R = (C + 1)^-1. It is zero
  where Ω is, and always descends. For a linear layer without a residual Ω is (C A + A C) / 2, up
  to scale, with A the generator that leads to the solution, and R Ω R is near A.

The package offers neither; this shows what they would gain and lose. C and its powers are made
densely, in O(n³): steps are counted, not timed. SGD without momentum.

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
from geoopt_projunn.linalg.dense import skewh

WAYS = ("none", "of the gradient, α = 1/2", "of the gradient, α = 1", "of the generator")
# By way, what is added to the eigenvalues and the power that is taken of the sum.
POWERS = {WAYS[1]: (0.1, -0.5), WAYS[2]: (0.1, -1.0), WAYS[3]: (1.0, -1.0)}
RATES = (0.1, 0.18, 0.3, 0.55, 1.0, 1.8, 3.0, 5.5, 10.0)
DECAY, EVERY = 0.99, 5
TARGET, MOST_STEPS = 1e-3, 1500
# A suboptimality of float32 data is rounding below this share of the first; and what diverges.
LEAST, MOST = 1e-9, 100.0


class Preconditioner:
    """The running covariance of the rows of a gradient, (b, n, n), and its power."""

    def __init__(self, way: str) -> None:
        self._way, self._steps = way, 0
        self._covariance = self._of_power = torch.zeros(())

    def __call__(self, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Return what the step at x is to follow instead of a gradient."""
        if self._way not in POWERS:
            return grad
        gram = grad.mH @ grad
        gram = gram / gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        self._covariance = DECAY * self._covariance + (1 - DECAY) * gram
        self._steps += 1
        # As in practice, not at each step.
        if self._steps % EVERY == 1:
            added, power = POWERS[self._way]
            values, vectors = torch.linalg.eigh(self._covariance / (1 - DECAY**self._steps))
            values = (values.clamp(min=0) + added) ** power
            values = values / values.mean(-1, keepdim=True)
            self._of_power = (vectors * values[..., None, :].to(vectors.dtype)) @ vectors.mH
        if self._way != WAYS[3]:
            return grad @ self._of_power
        return x @ self._of_power @ skewh(x.mH @ grad) @ self._of_power


class Training:
    """Some problems of one size as a batch, one seed each."""

    def __init__(self, problems: Sequence[Problem], k: int, way: str, lr: float) -> None:
        self._problems = problems
        start = torch.stack([problem.start for problem in problems])
        self._weight = ManifoldParameter(start, manifold=LowRankUnitary(k))
        self.optimizer = ProjUNNRiemannianSGD([self._weight], lr=lr)
        self._preconditioned = Preconditioner(way)
        self._first = self._suboptimalities()

    def _suboptimalities(self) -> list[float]:
        points = self._weight.detach()
        return [one.suboptimality(x) for one, x in zip(self._problems, points, strict=True)]

    def step(self) -> None:
        points = self._weight.detach()
        gradients = [one.gradient(x) for one, x in zip(self._problems, points, strict=True)]
        self._weight.grad = self._preconditioned(points, torch.stack(gradients))
        self.optimizer.step()

    def loss(self) -> float:
        """Return the suboptimality over that of the start, the geometric mean of all seeds."""
        shares = [now / at for now, at in zip(self._suboptimalities(), self._first, strict=True)]
        logs = [math.log(min(max(share, LEAST), MOST)) for share in shares]
        return math.exp(sum(logs) / len(logs))


def ends(k: int, steps: int, way: str, lr: float, problems: Sequence[Problem]) -> float:
    """Return the loss after some steps, with a rate that falls to zero."""
    training = Training(problems, k, way, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda at: 1 - at / steps)
    for _ in range(steps):
        training.step()
        schedule.step()
    return training.loss()


def steps_to(target: float, k: int, way: str, lr: float, problem: Problem, most: float) -> float:
    """Return after how many steps of a constant rate the loss is below a target."""
    training, steps, lowest = Training([problem], k, way, lr), 0, [1.0]
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
    return f"| {first} | " + " | ".join(WAYS) + " |\n|---" + "|---" * len(WAYS) + "|"


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
        found = dict.fromkeys(WAYS, math.inf)
        for way, lr in product(WAYS, rates):
            drawn = [draw(torch.Generator().manual_seed(seed), n) for seed in range(seeds)]
            # min() keeps the first where the second is not a number.
            found[way] = min(found[way], ends(k, steps, way, lr, drawn))
        tqdm.write(f"| {name} | " + " | ".join(f"{end:.1e}" for end in found.values()) + " |")

    most, target = (20, 0.9) if options.smoke else (MOST_STEPS, TARGET)
    print(f"\n{heads(f'steps to {target:g}, regression, batches of 32')}")
    sizes = [(n, k)] if options.smoke else product(options.sizes, (8, 16))
    for n, k in tqdm(list(sizes), unit="row", leave=False):
        cells = []
        for way in WAYS:
            best = math.inf
            for lr in sorted(rates, key=lambda lr: abs(math.log(lr))):
                drawn = regression(torch.Generator().manual_seed(0), n, label_noise=0.0, batch=32)
                best = min(best, steps_to(target, k, way, lr, drawn, min(best, most)))
            cells.append(f"{best:g}")
        tqdm.write(f"| n = {n}, k = {k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
