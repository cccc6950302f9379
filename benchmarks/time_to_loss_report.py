"""The table and the figure of time_to_loss.py."""

from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
from time_to_loss_run import OUTCOMES, OVER_BUDGET, REACHED, TARGET, Run

mpl.use("Agg")
import matplotlib.pyplot as plt

# Ours are full lines, the peers broken ones.
STYLES = {
    "ours: k = 1": ("#9ecae1", "-"),
    "ours: k = 4": ("#4292c6", "-"),
    "ours: k = 8": ("#2171b5", "-"),
    "ours: k = 16": ("#08306b", "-"),
    "ours: k = 32": ("#00a087", "-"),
    "peer: geoopt EuclideanStiefel": ("#e6550d", "--"),
    "peer: geoopt CanonicalStiefel": ("#fdae6b", "--"),
    "peer: torch orthogonal, cayley": ("#756bb1", ":"),
    "peer: POGO": ("#31a354", "-."),
}


def best(runs: list[Run]) -> Run:
    """Return the run of a method at its best learning rate."""

    def order(run: Run) -> tuple[int, float, float]:
        effort = run.steps if run.outcome == REACHED else run.budget
        return OUTCOMES.index(run.outcome), effort, run.curve[-1]

    return min(runs, key=order)


def grouped(runs: list[Run]) -> dict[tuple[str, int], dict[str, list[Run]]]:
    """Collect the learning rates of each method, by problem (regressions first) and size."""
    groups: dict[tuple[str, int], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: (run.problem.swapcase(), run.n)):
        groups[run.problem, run.n][run.method].append(run)
    return groups


def ratio(peer: Run | None, run: Run) -> str:
    """Return how many times faster than the best peer a run is; a bound where one gave up."""
    if peer is None or run.outcome not in (REACHED, OVER_BUDGET):
        return "–"
    sign = {
        (REACHED, REACHED): "",
        (OVER_BUDGET, REACHED): "> ",
        (REACHED, OVER_BUDGET): "< ",
    }.get((peer.outcome, run.outcome))
    return "–" if sign is None else f"{sign}{peer.seconds / run.seconds:.2g}×"


def best_peer(bests: list[Run]) -> Run | None:
    """Return the peer that may be fastest: one that gave up may have been about to arrive."""
    peers = [run for run in bests if run.method.startswith("peer") and run.seconds < float("inf")]
    return min(peers, key=lambda run: run.seconds, default=None)


def table(runs: list[Run]) -> str:
    """Return a Markdown table, fastest first for each problem and size."""
    heads = ("problem", "n", "method", "seconds", "against the best peer", "steps (lr)")
    heads += ("ms/step", "wall s", "ms/gradient")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    at_an_edge = False
    for (problem, n), methods in grouped(runs).items():
        bests = sorted(map(best, methods.values()), key=lambda run: (run.seconds, run.method))
        peer = best_peer(bests)
        for run in bests:
            rates = [one.lr for one in methods[run.method]]
            edge = run.outcome == REACHED and run.lr in (min(rates), max(rates))
            at_an_edge |= edge
            reached = f"{run.steps} ({run.lr:g}{'†' if edge else ''})"
            cells = {
                REACHED: (f"{run.seconds:.3g}", ratio(peer, run), reached),
                OVER_BUDGET: (f"> {run.budget:g}", ratio(peer, run), f"> {run.steps}"),
            }.get(run.outcome, (run.outcome, "–", "–"))
            costs = f"{1e3 * run.step_seconds:.2f} | {run.wall_seconds:.3g}"
            lines.append(
                f"| {problem} | {n} | {run.method} | {' | '.join(cells)} | {costs} "
                f"| {1e3 * run.gradient_seconds:.2f} |"
            )
    if at_an_edge:
        lines += ["", "† at an edge of the learning rates tried"]
    return "\n".join(lines)


def draw(runs: list[Run], path: Path) -> None:
    """Draw the population loss against optimizer seconds, each method at its best rate."""
    groups = grouped(runs)
    width = min(len(groups), 3)
    height = -(-len(groups) // width)
    figure, grid = plt.subplots(
        height,
        width,
        figsize=(4.2 * width, 3.4 * height),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    for axes, ((problem, n), methods) in zip(grid.flat, groups.items(), strict=False):
        for name in STYLES.keys() & methods.keys():
            run = best(methods[name])
            if len(run.curve) < 3:
                continue
            seconds = [run.step_seconds * run.check_every * i for i in range(len(run.curve))]
            color, line = STYLES[name]
            axes.loglog(seconds[1:], run.curve[1:], line, color=color, label=name)
        axes.axhline(TARGET, color="0.6", linewidth=0.8)
        axes.set(title=f"{problem}, n = {n}", xlabel="optimizer seconds", ylim=(7e-3, 1.1))
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
        axes.xaxis.set_minor_formatter("")
    for axes in grid[:, 0]:
        axes.set_ylabel("population loss / initial")
    lines = {
        label: line
        for axes in grid.flat
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    shown = [name for name in STYLES if name in lines]
    figure.legend(
        [lines[name] for name in shown],
        [name.removeprefix("peer: ") for name in shown],
        loc="outside lower center",
        ncols=2 * width,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
