r"""Count the optimizer seconds to a target loss: rank-k steps beside full-rank peers.

A step of rank k is cheaper than a full one and does less, so steps and seconds of a step say
little each; this gives their product. Every method runs every problem at every learning rate of
one grid, until the population loss is below TARGET of its initial value. Its figure is the number
of steps, at the rate that needs fewest, times the median processor time of a step. A step is what
comes on top of the gradient with respect to the matrix: ``optimizer.step()``, and for a
parametrization its forward and backward pass too. The loss is looked at outside of it. One thread.

    python benchmarks/time_to_loss.py                                # mini-batches, 512 and 1024
    python benchmarks/time_to_loss.py --sizes 512 --problems "regression, batch n" \
        "Procrustes, consistent" "Procrustes, large residual"        # gradients of full rank
    python benchmarks/time_to_loss.py --smoke                        # seconds, for a test

Every run leaves a file in the output folder, and a second call goes on with what is missing; to
measure a method again, delete its files. POGO takes part if pogo-torch is installed.
"""

import argparse
import json
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import geoopt
import torch
from methods import Method, Trained, on_manifold, parametrized
from problems import Problem, procrustes, regression
from time_to_loss_report import DIVERGED, OVER_BUDGET, OVERTAKEN, REACHED, STALLED, Run, draw, table
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

TARGET = 1e-2
CHECK_EVERY = 10
PATIENCE = 30
# The same gradient moves geoopt's CanonicalStiefel four times as far as the others.
RATES = (0.055, 0.1, 0.18, 0.3, 0.55, 1.0)
RANKS = (1, 4, 16, 32)
MINI_BATCH = "regression"
Draw = Callable[[torch.Generator, int, int], Problem]
# Gradients are means over the samples: (W - Q) X Xᵀ / batch for the regressions.
PROBLEMS: dict[str, Draw] = {
    MINI_BATCH: lambda g, n, batch: regression(g, n, label_noise=0.0, batch=batch),
    "regression, batch n": lambda g, n, _: regression(g, n, label_noise=0.0, batch=n),
    "Procrustes, consistent": lambda g, n, _: procrustes(g, n, noise=0.0, samples=2 * n),
    "Procrustes, large residual": lambda g, n, _: procrustes(g, n, noise=2.0, samples=2 * n),
}


@dataclass(frozen=True)
class Task:
    """One method on one problem at one learning rate."""

    problem: str
    n: int
    batch: int
    seed: int
    method: Method
    lr: float

    @property
    def label(self) -> str:
        """The problem, with its batch where that is an option."""
        return f"{self.problem}, batch {self.batch}" if self.problem == MINI_BATCH else self.problem

    def path(self, folder: Path) -> Path:
        words = f"{self.method.name}_{self.label}_n{self.n}_lr{self.lr:g}_seed{self.seed}"
        return folder / (re.sub(r"[^\w.]+", "-", words) + ".json")


@lru_cache(maxsize=1)
def drawn(name: str, n: int, batch: int, seed: int) -> tuple[Problem, torch.Generator, object]:
    """Draw a problem; with the generator of its batches, and the state that they start from."""
    generator = torch.Generator().manual_seed(seed)
    problem = PROBLEMS[name](generator, n, batch)
    return problem, generator, generator.get_state()


def methods(n: int) -> Iterator[Method]:
    """Yield ours, of ranks that n allows, and the peers that are installed."""
    for k in RANKS:
        if k <= n // 2:
            yield Method("ours", f"k = {k}", on_manifold(LowRankUnitary(k), ProjUNNRiemannianSGD))
    if n >= 32:
        lsi = LowRankUnitary(16, sketch="lsi")
        yield Method("ours", "k = 16, lsi", on_manifold(lsi, ProjUNNRiemannianSGD))
    for manifold in (geoopt.EuclideanStiefel(), geoopt.CanonicalStiefel()):
        make = on_manifold(manifold, geoopt.optim.RiemannianSGD)
        yield Method("peer", f"geoopt {type(manifold).__name__}", make)
    yield Method("peer", "torch orthogonal, cayley", parametrized("cayley", torch.optim.SGD))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compiles something with what torch deprecates
            from pogo import POGO, base
    except ImportError:
        return

    def make_pogo(start: torch.Tensor, lr: float) -> Trained:
        weight = torch.nn.Parameter(start.clone())
        return lambda: weight, POGO([weight], base.SGD(), lr)

    yield Method("peer", "POGO", make_pogo)


class Stopwatch:
    """Processor seconds, which other processes do not add to, and wall seconds."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0

    def __enter__(self) -> None:
        self._begun = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.processor += time.process_time() - self._begun[0]
        self.wall += time.perf_counter() - self._begun[1]


def stalled(curve: list[float]) -> bool:
    """Return whether the second half of a curve of some length has found nothing lower."""
    half = len(curve) // 2
    return half >= PATIENCE and min(curve[half:]) >= min(curve[:half])


def run(task: Task, most: float, budget: float, progress: tqdm) -> Run:
    """Train until the target, ``most`` steps, the budget, or divergence or no progress."""
    problem, generator, state = drawn(task.problem, task.n, task.batch, task.seed)
    generator.set_state(state)
    weight, optimizer = task.method.make(problem.start[None], task.lr)
    first = problem.suboptimality(problem.start)
    curve, steps, gradients = [1.0], [], []
    outcome, wall, spent = OVER_BUDGET, 0.0, 0.0
    while spent < budget:
        step, gradient = Stopwatch(), Stopwatch()
        optimizer.zero_grad()
        with step:
            point = weight()
        with gradient:
            grad = problem.gradient(point.detach()[0])[None]
        if point.is_leaf:
            point.grad = grad
        with step:
            if not point.is_leaf:
                point.backward(grad)
            optimizer.step()
        steps.append(step.processor)
        gradients.append(gradient.processor)
        wall += step.wall
        spent += step.processor
        if len(steps) % CHECK_EVERY:
            continue
        value = problem.suboptimality(weight().detach()[0]) / first
        if not value < 10:
            outcome = DIVERGED
            break
        curve.append(float(f"{value:.4g}"))
        progress.set_postfix(loss=value, refresh=False)
        progress.update(CHECK_EVERY)
        if value < TARGET:
            outcome = REACHED
            break
        if len(steps) >= most:
            outcome = OVERTAKEN
            break
        if stalled(curve):
            outcome = STALLED
            break
    return Run(
        problem=task.label,
        n=task.n,
        method=task.method.name,
        lr=task.lr,
        seed=task.seed,
        outcome=outcome,
        steps=len(steps),
        step_seconds=statistics.median(steps),
        wall_seconds=wall,
        gradient_seconds=statistics.median(gradients),
        budget=budget,
        check_every=CHECK_EVERY,
        curve=curve,
    )


def from_the_middle(rates: Sequence[float]) -> list[float]:
    """Sort so that the likeliest come first, which bounds the steps of the others."""
    middle = statistics.median(math.log(lr) for lr in rates)
    return sorted(rates, key=lambda lr: abs(math.log(lr) - middle))


def record(options: argparse.Namespace) -> None:
    """Run what the folder does not hold yet."""
    options.output.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(problem, n, options.batch, options.seed, method, lr)
        for problem in options.problems
        for n in options.sizes
        for method in methods(n)
        if any(text in method.name for text in options.methods)
        for lr in from_the_middle(options.rates)
    ]
    for task in tqdm(tasks, unit="run"):
        path = task.path(options.output)
        if path.exists():
            known = Run(**json.loads(path.read_text()))
            if known.outcome != OVER_BUDGET or known.budget >= options.budget:
                continue
        # Steps of one method cost the same at any rate: the fewest are the fastest.
        rivals = [
            one.steps
            for one in load(options.output)
            if (one.problem, one.n, one.method, one.seed, one.outcome)
            == (task.label, task.n, task.method.name, task.seed, REACHED)
        ]
        name = f"{task.label}, n = {task.n}, {task.method.name}, lr {task.lr:g}"
        with tqdm(desc=name, unit="step", leave=False) as progress:
            result = run(task, min(rivals, default=math.inf), options.budget, progress)
        path.write_text(json.dumps(asdict(result)) + "\n")


def load(folder: Path) -> list[Run]:
    return [Run(**json.loads(path.read_text())) for path in sorted(folder.glob("*_seed*.json"))]


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=[MINI_BATCH])
    parser.add_argument("--batch", type=int, default=32, help="samples of a fresh mini-batch")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of methods' names")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--budget", type=float, default=200, help="optimizer seconds of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/time_to_loss"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.sizes, options.batch, options.budget = [16], 4, min(options.budget, 10)
    torch.set_num_threads(1)
    print("Learning rates:", *options.rates)
    record(options)
    runs = [one for one in load(options.output) if one.seed == options.seed]
    text = table(runs)
    (options.output / "time_to_loss.md").write_text(text + "\n")
    draw(runs, options.output / "time_to_loss.png")
    print(text)
    return runs


if __name__ == "__main__":
    main()
