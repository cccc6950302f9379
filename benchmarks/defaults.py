"""Compare ranks, momenta and second moments: the loss after a fixed number of steps.

Every method runs the ten problems of problems.py at each learning rate of its family, once at a
constant rate and once at one that falls linearly to zero, on several seeds at once (as one batch
of matrices). Its figure is the suboptimality at the end over that at the start, the geometric mean
over the seeds, at the best rate. Runs are recorded one by one in a JSON-lines file; a second call
continues it.

    python benchmarks/defaults.py                     # the tables and the picture, half an hour
    python benchmarks/defaults.py --help              # --methods and --rates choose parts
    python benchmarks/defaults.py --smoke             # seconds, for a test
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import geoopt
import matplotlib as mpl
import torch
from methods import Method, on_manifold, parametrized
from problems import PROBLEMS
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

mpl.use("Agg")
import matplotlib.pyplot as plt

GRIDS = {
    "gradient": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "gradient, momentum": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "angle": (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8),
    "entries": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
    "length": (0.1, 0.3, 1.0, 3.0, 10.0),
}
SCHEDULES = ("constant", "decaying")
# A suboptimality of float32 data is rounding below this share of the first; and solved below this.
FLOOR, SOLVED = 1e-9, 1e-6
DRAWN = {
    "no momentum": "o",
    "heavy ball": "v",
    "Nesterov": "^",
    "Nesterov, angle": "D",
    "tangent momentum": "<",
    "tangent momentum, angle": "s",
    "Adam, elementwise": "x",
    "Adam, mean": "P",
}
IN_RADIANS = (
    "Nesterov, angle",
    *(f"Nesterov, angle, {name}" for name in ("k = 1", "k = 4", "k = 16", "full rank")),
    "Nesterov, spectral",
    "Nesterov, angle, coordinates",
)


@dataclass
class Run:
    """One method on one problem at one learning rate, on all seeds."""

    problem: str
    n: int
    method: str
    schedule: str
    lr: float
    seeds: int
    steps: int
    ends: list[float]
    """For each seed, suboptimality at the end relative to the start."""

    @property
    def mean(self) -> float:
        """The geometric mean; what is not finite counts as no progress a hundred times over."""
        logs = [math.log(min(max(end, FLOOR), 100.0)) for end in self.ends]
        return math.exp(sum(logs) / len(logs))


def methods() -> Iterator[Method]:
    """Yield the methods that are compared; k = 8 where none is named."""
    sgd, adam = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
    nesterov = {"momentum": 0.9, "nesterov": True}
    angle = {**nesterov, "normalize": "angle"}
    tangent = {**nesterov, "momentum_space": "tangent"}
    at_8, stiefel = LowRankUnitary(8), geoopt.EuclideanStiefel()

    yield Method("gradient", "no momentum", on_manifold(at_8, sgd))
    yield Method("gradient, momentum", "heavy ball", on_manifold(at_8, sgd, momentum=0.9))
    yield Method("gradient, momentum", "Nesterov", on_manifold(at_8, sgd, **nesterov))
    yield Method("gradient, momentum", "tangent momentum", on_manifold(at_8, sgd, **tangent))
    yield Method("angle", "no momentum, angle", on_manifold(at_8, sgd, normalize="angle"))
    yield Method("angle", "Nesterov, angle", on_manifold(at_8, sgd, **angle))
    yield Method(
        "angle",
        "tangent momentum, angle",
        on_manifold(at_8, sgd, **{**tangent, "normalize": "angle"}),
    )
    yield Method(
        "angle",
        "Nesterov, spectral",
        on_manifold(at_8, sgd, **{**nesterov, "normalize": "spectral"}),
    )
    for k in (1, 4, 16, None):
        name = "full rank" if k is None else f"k = {k}"
        make = on_manifold(LowRankUnitary(k), sgd, **angle)
        yield Method("angle", f"Nesterov, angle, {name}", make)
    make = on_manifold(LowRankUnitary(8, sketch="coordinates"), sgd, **angle)
    yield Method("angle", "Nesterov, angle, coordinates", make)
    for second in ("elementwise", "mean"):
        for k in (8, 1):
            name = f"Adam, {second}" + ("" if k == 8 else f", k = {k}")
            make = on_manifold(LowRankUnitary(k), adam, second_moment=second)
            yield Method("entries", name, make)
    yield Method(
        "angle",
        "full rank, spectral (Muon)",
        on_manifold(LowRankUnitary(None), sgd, **{**nesterov, "normalize": "spectral"}),
    )
    yield Method(
        "gradient, momentum",
        "tangent momentum, full rank",
        on_manifold(LowRankUnitary(None), sgd, **tangent),
    )
    theirs = geoopt.optim.RiemannianSGD
    yield Method(
        "gradient, momentum", "geoopt, SGD", on_manifold(stiefel, theirs, momentum=0.9), False
    )
    theirs = geoopt.optim.RiemannianAdam
    yield Method("length", "geoopt, Adam", on_manifold(stiefel, theirs), False)
    yield Method("entries", "torch, Adam", parametrized("matrix_exp", torch.optim.Adam), False)


def train(
    problem: str, method: Method, schedule: str, lr: float, options: argparse.Namespace
) -> Run:
    drawn = [
        PROBLEMS[problem](torch.Generator().manual_seed(seed), options.n)
        for seed in range(options.seeds)
    ]
    weight, optimizer = method.make(torch.stack([one.start for one in drawn]), lr)
    total = options.steps if schedule == "decaying" else float("inf")
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(options.steps):
        optimizer.zero_grad()
        points = weight()
        of = points.detach()
        points.backward(torch.stack([one.gradient(x) for one, x in zip(drawn, of, strict=True)]))
        optimizer.step()
        falling.step()
    ends = []
    for one, x in zip(drawn, weight().detach(), strict=True):
        value = one.suboptimality(x) / one.suboptimality(one.start)
        ends.append(float(f"{value:.4g}") if math.isfinite(value) else float("inf"))
    return Run(problem, options.n, method.variant, schedule, lr, options.seeds, options.steps, ends)


def record(options: argparse.Namespace) -> list[Run]:
    """Run what the file does not hold yet, and return all that was asked for."""
    path: Path = options.output / "defaults.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    size = options.n, options.seeds, options.steps
    known = {}
    for line in lines:
        run = Run(**json.loads(line))
        if (run.n, run.seeds, run.steps) == size:
            known[run.problem, run.method, run.schedule, run.lr] = run
    todo = [
        (problem, method, schedule, lr)
        for problem in options.problems
        for method in methods()
        if method.takes_complex or problem != "random unitary"
        if any(text in method.variant for text in options.methods)
        for schedule in SCHEDULES
        for lr in options.rates or GRIDS[method.family][:: options.thin]
    ]
    runs = []
    with path.open("a") as file:
        for problem, method, schedule, lr in (progress := tqdm(todo, unit="run", mininterval=5)):
            progress.set_postfix_str(f"{problem}, {method.variant}")
            run = known.get((problem, method.variant, schedule, lr))
            if run is None:
                run = train(problem, method, schedule, lr, options)
                file.write(json.dumps(asdict(run)) + "\n")
                file.flush()
            runs.append(run)
    return runs


def best(runs: list[Run], problem: str, method: str, schedule: str) -> Run | None:
    """Return the run at the learning rate that ends lowest."""
    asked = (problem, method, schedule)
    of = [run for run in runs if (run.problem, run.method, run.schedule) == asked]
    return min(of, key=lambda run: run.mean, default=None)


def table(runs: list[Run], schedule: str) -> str:
    """Return a Markdown table: the end of every method on every problem, and its best rate."""
    names = list(dict.fromkeys(run.problem for run in runs))
    lines = [f"| {schedule} rate | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for method in dict.fromkeys(run.method for run in runs):
        cells = []
        for name in names:
            run = best(runs, name, method, schedule)
            cells.append("" if run is None else f"{run.mean:.2g} ({run.lr:g})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def angles(runs: list[Run], schedule: str) -> str:
    """Return how far above the best angle each ends, the geometric mean over the problems."""
    ranks = [name for name in dict.fromkeys(run.method for run in runs) if name in IN_RADIANS]
    rates = sorted({run.lr for run in runs if run.method in ranks})
    lines = [f"| angle, {schedule} | " + " | ".join(f"{lr:g}" for lr in rates) + " |"]
    lines.append("|---" * (1 + len(rates)) + "|")
    for method in ranks:
        logs: dict[float, list[float]] = {lr: [] for lr in rates}
        for run in runs:
            if (run.method, run.schedule) == (method, schedule):
                least = best(runs, run.problem, method, schedule)
                assert least is not None
                ends = max(run.mean, SOLVED), max(least.mean, SOLVED)
                logs[run.lr].append(math.log(ends[0] / ends[1]))
        means = [math.exp(sum(logs[lr]) / len(logs[lr])) for lr in rates]
        lines.append(f"| {method} | " + " | ".join(f"{mean:.2g}" for mean in means) + " |")
    return "\n".join(lines)


def draw(runs: list[Run], path: Path) -> None:
    """Draw where methods end, a panel for each schedule."""
    names = list(dict.fromkeys(run.problem for run in runs))
    figure, row = plt.subplots(
        1, 2, figsize=(11, 1.5 + 0.4 * len(names)), sharey=True, layout="constrained"
    )
    for axes, schedule in zip(row, SCHEDULES, strict=True):
        for method, marker in DRAWN.items():
            found = [best(runs, name, method, schedule) for name in names]
            ends = [math.nan if run is None else run.mean for run in found]
            axes.semilogx(ends, range(len(names)), marker, label=method, alpha=0.8)
        axes.set(title=f"{schedule} rate", xlabel="suboptimality at the end / at the start")
        axes.grid(alpha=0.3)
    row[0].set_yticks(range(len(names)), names)
    row[0].invert_yaxis()
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="size of the matrix")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of methods' names")
    parser.add_argument("--rates", nargs="+", type=float, help="instead of those of a family")
    parser.add_argument("--output", type=Path, default=Path("outputs/defaults"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.n, options.steps, options.seeds, options.thin = 32, 3, 2, 7
    torch.set_num_threads(1)
    runs = record(options)
    tables = [make(runs, schedule) for make in (table, angles) for schedule in SCHEDULES]
    text = "\n\n".join(tables)
    (options.output / "defaults.md").write_text(text + "\n")
    draw(runs, options.output / "defaults.png")
    print(text)
    return runs


if __name__ == "__main__":
    main()
