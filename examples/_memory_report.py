"""The picture and the table of experiments on memory."""

from pathlib import Path

from _pictures import plt, save_picture
from _tasks import MemoryTask, Row, Task


def runs(rows: list[Row], task: Task) -> dict[tuple[str, int], list[Row]]:
    """Return the histories on a task by network and seed."""
    histories: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["task"] == task.name:
            histories.setdefault((row["network"], row["seed"]), []).append(row)
    return histories


def draw(rows: list[Row], tasks: list[MemoryTask], path: Path) -> None:
    """Draw loss against iterations, a panel for each task, one colour for each network."""
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(1 + 4.5 * len(tasks), 4), layout="constrained", squeeze=False
    )
    labels = sorted({row["network"] for row in rows})
    for axes, task in zip(panels[0], tasks, strict=True):
        drawn = set()
        for (label, _), history in runs(rows, task).items():
            axes.semilogy(
                [row["iteration"] for row in history],
                [row["loss"] for row in history],
                color=f"C{labels.index(label)}",
                linewidth=1.2,
                label=None if label in drawn else label,
            )
            drawn.add(label)
            full = next((r["iteration"] for r in history if r["length"] == task.length), None)
            if full not in (None, history[0]["iteration"]):
                axes.axvline(full, color="0.6", linewidth=1, zorder=0)
        axes.axhline(task.trivial, color="0.3", linestyle="--", label="trivial predictor")
        axes.axhline(task.threshold, color="0.6", linestyle=":", label=f"{task.threshold:g}")
        axes.set(xlabel="iteration", ylabel="loss", title=task.title)
        axes.grid(alpha=0.3)
        axes.legend()
    save_picture(figure, path)


def print_table(rows: list[Row], tasks: list[MemoryTask]) -> None:
    for task in tasks:
        print(f"\n{task.title}: a trivial predictor has loss {task.trivial:.4f}")
        below = f"below {task.threshold:g} at"
        width = max([26, *(len(label) + 2 for label, _ in runs(rows, task))])
        print(
            f"{'network':<{width}}{'seed':>6}{'iterations':>12}{'loss':>10}{below:>18}"
            f"{'seconds':>10}{'‖WᴴW − I‖':>12}"
        )
        for (label, seed), history in runs(rows, task).items():
            last = history[-1]
            solved = task.solved_at(history) or "never"
            error = last["orthogonality_error"]
            print(
                f"{label:<{width}}{seed:>6}{last['iteration']:>12}{last['loss']:>10.1e}{solved:>18}"
                f"{last['seconds']:>10.0f}{'' if error is None else f'{error:.0e}':>12}"
            )
    print("\nIterations: how many, and the first with a loss below the threshold; W is recurrent")
