"""Measure the alternatives to what the defaults do, on the problems of learning.py.

Each question has a few answers, which are tried on the same problems, seeds and learning rates:

- sketch: which directions a step of rank k turns;
- momentum: where the buffer lives;
- feedback: what the buffer keeps of what a step has not carried;
- retraction: polar, exponential or Cayley;
- second moment: which learning rate is best for Adam, at several ranks and widths.

Results are recorded one by one in a JSON-lines file; a second call continues it. A table and a
figure for each question lie beside it.

    python benchmarks/choices.py                      # the tables of the documentation
    python benchmarks/choices.py --smoke              # seconds, for a test
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from alternatives import ALTERNATIVES, Carried
from learning import FRACTIONS, NEVER, Run, best, train
from methods import GRIDS, Make, Method, on_manifold
from problems import PROBLEMS
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.sketches import SKETCHES

mpl.use("Agg")
import matplotlib.pyplot as plt

RESIDUAL, CONSISTENT = "Procrustes, large residual", "Procrustes, consistent"
BATCHES, NOISY, BROCKETT = "regression, batch 8", "regression, batch 8, noisy", "Brockett"
# What the figures show, an index into FRACTIONS.
_DRAWN = 1


class Trial(NamedTuple):
    """One answer to a question, to be tried on one problem."""

    question: str
    answer: str
    problem: str
    n: int
    grid: tuple[float, ...]
    make: Make


@dataclass(frozen=True)
class Result:
    """Steps to each fraction, and the learning rate that was best for it."""

    question: str
    answer: str
    problem: str
    n: int
    rates: tuple[float, ...]
    seeds: int
    most: int
    found: tuple[tuple[float, float], ...]

    def is_of(self, trial: Trial, rates: tuple[float, ...], options: argparse.Namespace) -> bool:
        mine = self.question, self.answer, self.problem, self.n, self.rates, self.seeds, self.most
        return mine == (*trial[:4], rates, options.seeds, options.steps)


def trials(n: int) -> Iterator[Trial]:
    """Yield every answer to every question, on the problems that tell answers apart."""
    sgd = ProjUNNRiemannianSGD
    for problem in (RESIDUAL, CONSISTENT, BATCHES, BROCKETT):
        for k in (1, 4):
            for name in ("tangent", *ALTERNATIVES):
                make = on_manifold(LowRankUnitary(k, sketch=name), sgd)
                yield Trial("sketch", f"{name}, k = {k}", problem, n, GRIDS["sgd"], make)
    for problem in (RESIDUAL, CONSISTENT, NOISY):
        for k in (1, 4):
            manifold = LowRankUnitary(k)
            places = {
                "ambient": on_manifold(manifold, sgd, momentum=0.9),
                "ambient, carried": on_manifold(manifold, Carried, momentum=0.9, tangent=False),
                "tangent, carried": on_manifold(manifold, Carried, momentum=0.9, tangent=True),
                "ambient, Nesterov": on_manifold(manifold, sgd, momentum=0.9, nesterov=True),
            }
            for name, make in places.items():
                yield Trial("momentum", f"{name}, k = {k}", problem, n, GRIDS["momentum"], make)
    for problem in (RESIDUAL, CONSISTENT, BATCHES, NOISY):
        for k in (1, 4):
            for share in (0.0, 0.5, 0.9, 0.97, 0.99):
                make = on_manifold(LowRankUnitary(k), sgd, momentum=0.9, error_feedback=share)
                yield Trial("feedback", f"{share}, k = {k}", problem, n, GRIDS["momentum"], make)
    for problem in (RESIDUAL, NOISY):
        for k in (1, 4):
            for name in ("exponential", "polar", "cayley"):
                make = on_manifold(LowRankUnitary(k, retraction=name), sgd)
                yield Trial("retraction", f"{name}, k = {k}", problem, n, GRIDS["sgd"], make)
    for kind, grid in (("elementwise", GRIDS["adam"]), ("scalar", GRIDS["adam, scalar"])):
        for size in (n, 2 * n):
            for k in (1, 4, 16, None):
                make = on_manifold(LowRankUnitary(k), ProjUNNRiemannianAdam, second_moment=kind)
                answer = f"{kind}, {'full rank' if k is None else f'k = {k}'}"
                yield Trial("second moment", answer, BATCHES, size, grid, make)


def measure(trial: Trial, rates: tuple[float, ...], options: argparse.Namespace) -> Result:
    runs = []
    for lr in rates:
        drawn = [
            PROBLEMS[trial.problem](torch.Generator().manual_seed(seed), trial.n)
            for seed in range(options.seeds)
        ]
        method = Method(trial.question, trial.answer, trial.make)
        curves = train(drawn, method, lr, options.steps)
        runs.append(Run(trial.problem, trial.n, trial.answer, lr, options.seeds, curves, 0.0))
    found = tuple(best(runs, fraction) for fraction in FRACTIONS)
    return Result(*trial[:4], rates, options.seeds, options.steps, found)


def read(path: Path) -> list[Result]:
    """Return what a file of results holds."""
    results = []
    for line in path.read_text().splitlines() if path.exists() else []:
        fields = json.loads(line)
        fields["rates"] = tuple(fields["rates"])
        fields["found"] = tuple((steps, lr) for steps, lr in fields["found"])
        results.append(Result(**fields))
    return results


def record(options: argparse.Namespace) -> list[Result]:
    """Try what has not been tried yet; return the results of all that was asked for."""
    path: Path = options.output / "choices.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    known, asked = read(path), []
    todo = [
        trial
        for trial in trials(options.n)
        if not options.questions or trial.question in options.questions
    ]
    with path.open("a") as file:
        for trial in (progress := tqdm(todo, unit="trial")):
            progress.set_postfix_str(f"{trial.question}: {trial.answer}")
            rates = trial.grid[:: options.thin]
            result = next((one for one in known if one.is_of(trial, rates, options)), None)
            if result is None:
                result = measure(trial, rates, options)
                file.write(json.dumps(asdict(result)) + "\n")
                file.flush()
            asked.append(result)
    return asked


def table(results: list[Result]) -> str:
    """Return a Markdown table of one question."""
    heads = " | ".join(f"{fraction:g} (lr)" for fraction in FRACTIONS)
    lines = [f"| problem | n | answer | {heads} |", "|---" * (len(FRACTIONS) + 3) + "|"]
    for one in results:
        cells = ["–" if steps == NEVER else f"{steps:g} ({lr:g})" for steps, lr in one.found]
        lines.append(f"| {one.problem} | {one.n} | {one.answer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: list[Result], path: Path) -> None:
    """Draw the steps of every answer to one question as bars, a panel for each problem."""
    panels = list(dict.fromkeys((one.problem, one.n) for one in results))
    longest = max(sum((one.problem, one.n) == panel for one in results) for panel in panels)
    figure, row = plt.subplots(
        1,
        len(panels),
        figsize=(1.5 + 3.2 * len(panels), 0.9 + 0.22 * longest),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axes, panel in zip(row[0], panels, strict=True):
        members = [one for one in results if (one.problem, one.n) == panel]
        ranks = sorted({one.answer.rpartition(", ")[2] for one in members})
        for place, one in enumerate(members):
            steps = one.found[_DRAWN][0]
            arrived = steps < NEVER
            width = steps if arrived else one.most
            colour = f"C{ranks.index(one.answer.rpartition(', ')[2])}" if arrived else "0.85"
            axes.barh(place, width, color=colour)
            text = f" {steps:g}" if arrived else " not in time"
            axes.text(width, place, text, va="center", fontsize="x-small")
        axes.set(xscale="log", title=f"{panel[0]}, n = {panel[1]}", xlim=(5, 6 * members[0].most))
        axes.set_xlabel(f"steps to {FRACTIONS[_DRAWN]:g} of the start")
        axes.title.set_fontsize("medium")
        axes.set_yticks(range(len(members)), [one.answer for one in members], fontsize="x-small")
    row[0, 0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="size of the matrix")
    parser.add_argument("--steps", type=int, default=1000, help="most steps of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--questions", nargs="+", help="some of them (default: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs/choices"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.n, options.steps, options.seeds, options.thin = 34, 5, 1, 6
    torch.set_num_threads(1)
    SKETCHES.update(ALTERNATIVES)
    try:
        results = record(options)
    finally:
        for name in ALTERNATIVES:
            del SKETCHES[name]
    text = ""
    for question in dict.fromkeys(one.question for one in results):
        of_question = [one for one in results if one.question == question]
        draw(of_question, options.output / f"choices_{question.replace(' ', '_')}.png")
        text += f"\n## {question}\n\n{table(of_question)}\n"
    (options.output / "choices.md").write_text(text)
    print(text)
    return results


if __name__ == "__main__":
    main()
