"""Count the steps that rank-k methods need, beside full-rank ones.

Every method runs every problem at every learning rate of its family's grid, which is printed,
on several seeds at once (as one batch of matrices). A method's figure is the median number of
steps, over the seeds, after which the suboptimality is below a fraction of its initial value,
at the learning rate that is best for that method and fraction. Seconds are steps times the
median time of a step of one matrix. Runs are recorded one by one in a JSON-lines file; a
second call continues it.

    python benchmarks/learning.py                     # the table of the documentation
    python benchmarks/learning.py --smoke             # seconds, for a test
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from methods import GRIDS, Method, methods
from problems import PROBLEMS, Problem
from tqdm import tqdm

mpl.use("Agg")
import matplotlib.pyplot as plt

FRACTIONS = (1e-1, 1e-2, 1e-3)
CHECK_EVERY = 5
TIMED_STEPS = 15
NEVER = float("inf")


@dataclass
class Run:
    """One method on one problem at one learning rate, on all seeds."""

    problem: str
    n: int
    method: str
    lr: float
    seeds: int
    curves: list[list[float]]
    """For each seed, suboptimality relative to the start, every CHECK_EVERY steps."""
    step_seconds: float

    def steps_to(self, fraction: float) -> float:
        """Return the median over the seeds of the steps to a fraction; infinite for never."""
        reached = [
            next((CHECK_EVERY * i for i, value in enumerate(curve) if value < fraction), NEVER)
            for curve in self.curves
        ]
        return statistics.median(reached)


def time_step(problem: Problem, method: Method, lr: float) -> float:
    """Return the median seconds of a backward pass and a step of one matrix, warm."""
    weight, optimizer = method.make(problem.start, lr)
    times = []
    for _ in range(TIMED_STEPS):
        optimizer.zero_grad()
        point = weight()
        grad = problem.gradient(point.detach())
        begun = time.perf_counter()
        point.backward(grad)
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[TIMED_STEPS // 3 :])


def train(problems: list[Problem], method: Method, lr: float, most: int) -> list[list[float]]:
    """Train one matrix for each problem until the last fraction, divergence, or the end."""
    weight, optimizer = method.make(torch.stack([problem.start for problem in problems]), lr)
    firsts = [problem.suboptimality(problem.start) for problem in problems]
    curves = [[1.0] for _ in problems]
    for step in range(1, most + 1):
        live = [FRACTIONS[-1] <= curve[-1] < 10 for curve in curves]
        if not any(live):
            break
        optimizer.zero_grad()
        points = weight()
        grad = torch.zeros_like(points)
        for seed, problem in enumerate(problems):
            if live[seed]:
                grad[seed] = problem.gradient(points[seed].detach())
        points.backward(grad)
        optimizer.step()
        if step % CHECK_EVERY == 0:
            for seed, point in enumerate(weight().detach()):
                if live[seed]:
                    value = problems[seed].suboptimality(point) / firsts[seed]
                    curves[seed].append(float(f"{value:.4g}"))
    return curves


def record(options: argparse.Namespace) -> list[Run]:
    """Run what the file does not hold yet, and return everything it holds."""
    path: Path = options.output / "learning.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    done = {(one.problem, one.n, one.method, one.lr, one.seeds) for one in runs}
    todo = [
        (name, method, lr)
        for name in options.problems
        for method in methods()
        if method.family in options.families
        and any(text in method.variant for text in options.methods)
        and (method.takes_complex or name != "random unitary")
        for lr in GRIDS[method.family][:: options.thin]
        if (name, options.n, method.name, lr, options.seeds) not in done
    ]
    with path.open("a") as file:
        for name, method, lr in (progress := tqdm(todo, unit="run")):
            progress.set_postfix_str(f"{name}, {method.name}")
            drawn = [
                PROBLEMS[name](torch.Generator().manual_seed(seed), options.n)
                for seed in range(options.seeds)
            ]
            # Curves first: timing draws mini-batches too.
            curves = train(drawn, method, lr, options.steps)
            seconds = time_step(drawn[0], method, lr)
            run = Run(name, options.n, method.name, lr, options.seeds, curves, seconds)
            runs.append(run)
            file.write(json.dumps(asdict(run)) + "\n")
            file.flush()
    return runs


def best(runs: list[Run], fraction: float) -> tuple[float, float]:
    """Return the fewest median steps over the learning rates, and that learning rate."""
    return min((run.steps_to(fraction), run.lr) for run in runs)


def grouped(runs: list[Run]) -> dict[tuple[str, int, str], list[Run]]:
    """Collect the learning rates of each method on each problem."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.problem, run.n, run.method].append(run)
    return groups


def table(runs: list[Run]) -> str:
    """Return a Markdown table: steps to each fraction, and ms for a step of one matrix."""
    heads = [f"{fraction:g} (lr)" for fraction in FRACTIONS]
    lines = [f"| problem | n | method | {' | '.join(heads)} | ms/step |"]
    lines.append("|---" * (len(FRACTIONS) + 4) + "|")
    order = [m.name for family in GRIDS for m in methods() if m.family == family]
    rows = sorted(
        grouped(runs).items(),
        key=lambda row: (list(PROBLEMS).index(row[0][0]), row[0][1], order.index(row[0][2])),
    )
    for (problem, n, method), group in rows:
        found = [best(group, fraction) for fraction in FRACTIONS]
        cells = ["–" if steps == NEVER else f"{steps:g} ({lr:g})" for steps, lr in found]
        ms = 1e3 * statistics.median(run.step_seconds for run in group)
        lines.append(f"| {problem} | {n} | {method} | {' | '.join(cells)} | {ms:.2f} |")
    return "\n".join(lines)


def median_curve(run: Run) -> list[float]:
    """Return the median over the seeds until it has arrived; one that ended keeps its value."""
    length = max(len(curve) for curve in run.curves)
    padded = [curve + [curve[-1]] * (length - len(curve)) for curve in run.curves]
    median = [statistics.median(values) for values in zip(*padded, strict=True)]
    arrived = (index + 1 for index, value in enumerate(median) if value < FRACTIONS[-1])
    return median[: next(arrived, length)]


def draw(runs: list[Run], family: str, path: Path) -> None:
    """Draw suboptimality against steps (above) and seconds (below), at the best rates."""
    groups = grouped(runs)
    problems = list(dict.fromkeys((problem, n) for problem, n, _ in groups))
    ranks = {f"{sketch}, k = {k}" for sketch in ("tangent", "lsi") for k in (1, 4)} | {"full rank"}
    width = min(len(problems), 5)
    blocks = -(-len(problems) // width)
    figure, grid = plt.subplots(
        2 * blocks,
        width,
        figsize=(3 * width, 5.2 * blocks),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axes in grid.flat[2 * width * (blocks - 1) :]:
        axes.axis("off")
    for index, (problem, n) in enumerate(problems):
        block, column = divmod(index, width)
        above, below = grid[2 * block, column], grid[2 * block + 1, column]
        for method in methods():
            group = groups.get((problem, n, method.name))
            if not group or method.variant.removeprefix("nesterov, ") not in ranks:
                continue
            reached = [f for f in FRACTIONS if best(group, f)[0] < NEVER]
            lr = best(group, min(reached, default=FRACTIONS[0]))[1]
            curve = median_curve(next(one for one in group if one.lr == lr))[1:]
            steps = [CHECK_EVERY * (index + 1) for index in range(len(curve))]
            seconds = statistics.median(one.step_seconds for one in group)
            style = "--" if "lsi" in method.variant else "-"
            above.loglog(steps, curve, style, label=method.variant)
            below.loglog([seconds * step for step in steps], curve, style)
        above.set(title=f"{problem}, n = {n}", xlabel="steps", ylim=(5e-4, 2))
        above.title.set_fontsize("medium")
        below.set(xlabel="seconds of backward and step")
        for axes in (above, below):
            axes.axis("on")
            axes.grid(alpha=0.3)
            axes.xaxis.set_minor_formatter("")
    for axes in grid[:, 0]:
        axes.set_ylabel("suboptimality / initial")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="size of the matrix")
    parser.add_argument("--steps", type=int, default=1500, help="most steps of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--families", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of methods' names")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.n, options.steps, options.seeds, options.thin = 34, 10, 2, 6
    torch.set_num_threads(1)
    for family in options.families:
        print(f"Learning rates, {family}:", *GRIDS[family][:: options.thin])
    runs = record(options)
    text = table(runs)
    (options.output / "learning.md").write_text(text + "\n")
    for family in options.families:
        of_family = [one for one in runs if one.method.startswith(f"{family}: ")]
        if of_family:
            name = family.replace(", ", "_")
            draw(of_family, family, options.output / f"learning_{name}.png")
    print(text)
    return runs


if __name__ == "__main__":
    main()
