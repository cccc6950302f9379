"""Count the steps that rank-k methods need, beside full-rank ones.

Every method runs every problem at every learning rate of one printed grid, on several seeds.
A method's figure is the median number of steps (over the seeds) after which the suboptimality
is below a fraction of its initial value, at the learning rate that is best for that method and
fraction. Runs are recorded one by one in a JSON-lines file; a second call continues it.

    python benchmarks/learning.py                     # the table of the documentation
    python benchmarks/learning.py --smoke             # seconds, for a test
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import geoopt
import matplotlib as mpl
import torch
from problems import PROBLEMS, Problem
from torch.nn.utils import parametrizations
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

mpl.use("Agg")
import matplotlib.pyplot as plt

FRACTIONS = (1e-1, 1e-2, 1e-3)
CHECK_EVERY = 10
# Each family of methods has the same number of learning rates, spaced alike.
GRIDS = {
    "sgd": (0.1, 0.18, 0.3, 0.55, 1.0, 1.8, 3.0),
    "momentum": (0.01, 0.018, 0.03, 0.055, 0.1, 0.18, 0.3),
    "adam": (3e-3, 5.5e-3, 1e-2, 1.8e-2, 3e-2, 5.5e-2, 1e-1),
}

Make = Callable[[torch.Tensor, float], tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]]


@dataclass(frozen=True)
class Method:
    """A way to train one matrix."""

    name: str
    family: str
    make: Make
    takes_complex: bool = True


@dataclass
class Run:
    """What one run reached: the steps at which it fell below each fraction, or None."""

    problem: str
    method: str
    lr: float
    seed: int
    hits: list[int | None]
    curve: list[float]
    seconds: float


def on_manifold(
    manifold: geoopt.Manifold, optimizer: Callable[..., torch.optim.Optimizer], **options: object
) -> Make:
    """Make a ManifoldParameter and its optimizer."""

    def make(
        start: torch.Tensor, lr: float
    ) -> tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]:
        weight = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        return lambda: weight, optimizer([weight], lr=lr, **options)

    return make


def parametrized(
    start: torch.Tensor, lr: float
) -> tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]:
    """Make torch's orthogonal parametrization and Adam on its raw weight."""
    layer = torch.nn.Linear(*start.shape, bias=False)
    layer.weight.data = start.clone()
    parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")
    layer.weight = start.clone()
    return lambda: layer.weight, torch.optim.Adam(layer.parameters(), lr=lr)


def methods() -> Iterator[Method]:
    """Yield all methods: ours for each sketch and rank, and what a user might take instead."""
    families = {
        "sgd": (ProjUNNRiemannianSGD, {}),
        "momentum": (ProjUNNRiemannianSGD, {"momentum": 0.9}),
        "adam": (ProjUNNRiemannianAdam, {}),
    }
    for family, (optimizer, options) in families.items():
        for sketch, k in product(("tangent", "lsi", "column"), (1, 4, 16)):
            manifold = LowRankUnitary(k, sketch=sketch)
            make = on_manifold(manifold, optimizer, **options)
            yield Method(f"{family}, {sketch}, k = {k}", family, make)
        make = on_manifold(LowRankUnitary(None), optimizer, **options)
        yield Method(f"{family}, full rank", family, make)
    stiefel = geoopt.EuclideanStiefel()
    sgd, adam = geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam
    yield Method("sgd, geoopt Stiefel", "sgd", on_manifold(stiefel, sgd), False)
    yield Method("adam, geoopt Stiefel", "adam", on_manifold(stiefel, adam), False)
    yield Method("adam, torch parametrization", "adam", parametrized, False)


def run(problem: Problem, method: Method, lr: float, most: int) -> tuple[list, list, float]:
    """Train until the last fraction, divergence, or the most steps allowed."""
    weight, optimizer = method.make(problem.start, lr)
    first = problem.suboptimality(problem.start)
    hits: list[int | None] = [None] * len(FRACTIONS)
    curve = [1.0]
    spent = 0.0
    for step in range(1, most + 1):
        optimizer.zero_grad()
        point = weight()
        grad = problem.gradient(point.detach())
        begun = time.perf_counter()
        point.backward(grad)
        optimizer.step()
        spent += time.perf_counter() - begun
        if step % CHECK_EVERY:
            continue
        curve.append(problem.suboptimality(weight().detach()) / first)
        if not curve[-1] < 10:
            break
        for index, fraction in enumerate(FRACTIONS):
            if hits[index] is None and curve[-1] < fraction:
                hits[index] = step
        if hits[-1] is not None:
            break
    return hits, curve, spent


def record(options: argparse.Namespace) -> list[Run]:
    """Run what the file does not hold yet, and return everything it holds."""
    path: Path = options.output / "learning.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    runs = (
        [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    )
    done = {(one.problem, one.method, one.lr, one.seed) for one in runs}
    chosen = [one for one in methods() if one.family in options.families]
    todo = [
        (name, method, lr, seed)
        for name, method, seed in product(options.problems, chosen, range(options.seeds))
        for lr in GRIDS[method.family][:: options.thin]
        if (name, method.name, lr, seed) not in done
        and (method.takes_complex or name != "random unitary")
    ]
    with path.open("a") as file:
        for name, method, lr, seed in (progress := tqdm(todo, unit="run")):
            progress.set_postfix_str(f"{name}: {method.name}")
            torch.manual_seed(seed)
            hits, curve, seconds = run(PROBLEMS[name](options.n), method, lr, options.steps)
            runs.append(Run(name, method.name, lr, seed, hits, curve, seconds))
            file.write(json.dumps(asdict(runs[-1])) + "\n")
            file.flush()
    return runs


def median_steps(runs: list[Run], fraction: int) -> float:
    """Return the median step of a fraction over seeds; infinite if most never got there."""
    return statistics.median(
        float("inf") if one.hits[fraction] is None else one.hits[fraction] for one in runs
    )


def best(runs: list[Run], fraction: int) -> tuple[float, float]:
    """Return the fewest median steps over the learning rates, and that learning rate."""
    by_lr = defaultdict(list)
    for one in runs:
        by_lr[one.lr].append(one)
    return min((median_steps(group, fraction), lr) for lr, group in by_lr.items())


def table(runs: list[Run]) -> str:
    """Return a Markdown table: steps to each fraction, and the learning rate of the last."""
    groups = defaultdict(list)
    for one in runs:
        groups[one.problem, one.method].append(one)
    lines = ["| problem | method | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " | lr |"]
    lines.append("|---" * (len(FRACTIONS) + 3) + "|")
    for (problem, method), group in groups.items():
        found = [best(group, index) for index in range(len(FRACTIONS))]
        steps = ["–" if count == float("inf") else f"{count:g}" for count, _ in found]
        lines.append(f"| {problem} | {method} | {' | '.join(steps)} | {found[-1][1]:g} |")
    return "\n".join(lines)


def draw(runs: list[Run], family: str, path: Path) -> None:
    """Draw suboptimality against steps, each method at its best learning rate."""
    shown = [f"{family}, {name}" for name in ("tangent, k = 1", "tangent, k = 4", "full rank")]
    shown += [f"{family}, lsi, k = 1", f"{family}, lsi, k = 4"]
    problems = list(dict.fromkeys(one.problem for one in runs))
    rows = -(-len(problems) // 4)
    figure, grid = plt.subplots(
        rows, min(4, len(problems)), figsize=(14, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(problems) :]:
        axes.axis("off")
    for axes, problem in zip(grid.flat, problems, strict=False):
        for method in shown:
            group = [one for one in runs if (one.problem, one.method) == (problem, method)]
            if not group:
                continue
            reached = [index for index in range(3) if best(group, index)[0] < float("inf")]
            lr = best(group, max(reached, default=0))[1]
            one = next(one for one in group if one.lr == lr and one.seed == 0)
            steps = [CHECK_EVERY * index for index in range(len(one.curve))]
            style = "--" if "lsi" in method else "-"
            axes.loglog(steps[1:], one.curve[1:], style, label=method.removeprefix(f"{family}, "))
        axes.set(title=problem, xlabel="steps", ylim=(5e-4, 2))
        axes.grid(alpha=0.3)
    grid.flat[0].set_ylabel("suboptimality / initial")
    grid.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="size of the matrix")
    parser.add_argument("--steps", type=int, default=2000, help="most steps of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--families", nargs="+", choices=GRIDS, default=["sgd"])
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.n, options.steps, options.seeds, options.thin = 34, 20, 1, 6
    torch.set_num_threads(1)
    print(
        "Learning rates:", {family: GRIDS[family][:: options.thin] for family in options.families}
    )
    runs = record(options)
    text = table(runs)
    (options.output / "learning.md").write_text(text + "\n")
    for family in options.families:
        of_family = [one for one in runs if one.method.startswith(family)]
        draw(of_family, family, options.output / f"learning_{family}.png")
    print(text)
    return runs


if __name__ == "__main__":
    main()
