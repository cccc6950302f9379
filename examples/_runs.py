"""What the recurrent experiments share: networks, the training loop, its files and its picture.

A run is one network on one task from one seed. After every few iterations it adds a row to its
history and saves itself; a second call continues it bit for bit, since the batch of an iteration
depends on the seed and the number of that iteration alone.
"""

import argparse
import csv
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.init import INITS
from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN, RealReadout, UnitaryRNN

mpl.use("Agg")
import matplotlib.pyplot as plt

NONLINEARITIES = ("modrelu", "relu", "tanh")
NETWORKS = ("orthogonal", "unitary", "orthogonal gru", "frozen", "lstm", "gru")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A supervised problem over sequences that lie along the first dimension."""

    name: str  # also of its files
    title: str
    batch: Callable[[int, int], tuple[Tensor, Tensor]]  # of a seed and an iteration, from 1
    loss: Callable[[Tensor, Tensor], Tensor]
    # Further columns of the history, and a factor of the learning rates by finished iterations.
    measure: Callable[[torch.nn.Module], dict[str, float]] = field(default=lambda model: {})
    decay: Callable[[int], float] = field(default=lambda iteration: 1.0)

    def columns(self, iteration: int) -> dict[str, int]:
        """Return what else to note in a row that begins with an iteration."""
        return {}

    def completed(self, row: Row) -> Row:
        """Return a saved row with the columns that earlier versions had not."""
        return row


@dataclass(frozen=True, kw_only=True)
class MemoryTask(Task):
    """One whose batches are drawn anew, so that the training loss is that on unseen sequences."""

    trivial: float  # loss of the best predictor that remembers nothing
    threshold: float  # a loss that counts as solved
    length: int
    length_at: Callable[[int], int] | None = None  # of shorter ones before, by iteration

    def columns(self, iteration: int) -> dict[str, int]:
        return {"length": self.length_at(iteration) if self.length_at else self.length}

    def completed(self, row: Row) -> Row:
        return {**row, "length": row.get("length", self.length)}

    def solved_at(self, history: list[Row]) -> int | None:
        """Return the first iteration with a loss below the threshold at the full length."""
        of_length = [row for row in history if row["length"] == self.length]
        return first_below(of_length, self.threshold)


@dataclass(frozen=True)
class Network:
    """A named way to make a model and its optimizer."""

    label: str
    build: Callable[[], tuple["Model", torch.optim.Optimizer]]


class Model(torch.nn.Module):
    """A recurrent layer and a linear readout of its states, all of them or the last."""

    def __init__(self, layer: torch.nn.Module, readout: torch.nn.Module, last: bool) -> None:
        super().__init__()
        self.layer, self.readout, self.last = layer, readout, last

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.readout(states[-1] if self.last else states)

    @torch.no_grad()
    def orthogonality_error(self) -> float | None:
        """Return ‖WᴴW − I‖ of the recurrent matrix; None where several are stacked."""
        weight = self.layer.weight_hh_l0
        if weight.shape[0] != weight.shape[1]:  # torch's LSTM and GRU
            return None
        weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
        return float(torch.linalg.matrix_norm(weight.mH @ weight - torch.eye(len(weight))))


def adam(
    model: Model,
    lr: float,
    recurrent_lr: float,
    betas: tuple[float, float],
    angle: float | None = None,
    second_moment: str = "mean",
) -> ProjUNNRiemannianAdam:
    """Return one optimizer for everything trained, with a rate of its own for the recurrent matrix.

    Adam's direction of an n x n matrix has a norm of about n, so that the rate that suits the other
    weights turns the recurrent matrix too far. With an angle its steps are in radians.
    """
    recurrent = model.layer.weight_hh_l0
    rest = [p for p in model.parameters() if p is not recurrent]
    turned: Row = {"params": [recurrent], "lr": recurrent_lr, "second_moment": second_moment}
    if angle is not None:
        turned.update(lr=angle, normalize="angle")
    return ProjUNNRiemannianAdam([{"params": rest, "lr": lr}, turned], betas=betas)


def networks(options: argparse.Namespace, inputs: int, outputs: int, last: bool) -> list[Network]:
    """Return the networks that the options name, those trained on a manifold for every rank.

    A frozen one keeps the recurrent matrix that it starts with and trains all else: what it
    reaches is no merit of the steps.
    """
    hidden, betas = options.hidden, (options.momentum, options.smoothing)
    kind = {"nonlinearity": options.nonlinearity, "init": options.init}

    def at_rank(layer: type, readout: type, k: int | None) -> tuple[Model, torch.optim.Optimizer]:
        model = Model(layer(inputs, hidden, k=k, **kind), readout(hidden, outputs), last)
        kinds = options.angle, options.second_moment
        return model, adam(model, options.lr, options.recurrent_lr, betas, *kinds)

    def torchs(layer: type) -> tuple[Model, torch.optim.Optimizer]:
        model = Model(layer(inputs, hidden), torch.nn.Linear(hidden, outputs), last)
        return model, torch.optim.Adam(model.parameters(), options.lr, betas)

    def frozen() -> tuple[Model, torch.optim.Optimizer]:
        layer = OrthogonalRNN(inputs, hidden, **kind)
        model = Model(layer, torch.nn.Linear(hidden, outputs), last)
        model.layer.weight_hh_l0.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.Adam(trained, options.lr, betas)

    single = {
        "frozen": ("orthogonal, frozen", frozen),
        "lstm": ("LSTM", partial(torchs, torch.nn.LSTM)),
        "gru": ("GRU", partial(torchs, torch.nn.GRU)),
    }
    ranked = {
        "orthogonal": ("orthogonal", OrthogonalRNN, torch.nn.Linear),
        "unitary": ("unitary", UnitaryRNN, RealReadout),
        "orthogonal gru": ("orthogonal GRU", OrthogonalGRU, torch.nn.Linear),
    }
    chosen = []
    for name in options.networks:
        if name in single:
            chosen.append(Network(*single[name]))
            continue
        label, *parts = ranked[name]
        for k in options.k:
            rank_label = "full rank" if k is None else f"k = {k}"
            chosen.append(Network(f"{label}, {rank_label}", partial(at_rank, *parts, k)))
    return chosen


def train(
    task: Task,
    network: Network,
    seed: int,
    iterations: int,
    *,
    every: int,
    clip: float | None = None,
    folder: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Train one network, or continue its run in a folder, and yield the rows of its history.

    A row holds the mean loss over the last ``every`` iterations. Without a folder nothing is
    saved. ``settings`` is whatever has to be the same to continue a run.
    """
    torch.manual_seed(seed)
    model, optimizer = network.build()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, task.decay)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, seconds, rows = 0, 0.0, []
    path = None if folder is None else folder / task.name / f"{_slug(network.label)}-{seed}.pt"
    if path is not None and path.exists():
        saved = torch.load(path)
        if saved["settings"] != settings:
            raise ValueError(
                f"{path} is a run with {saved['settings']}, not {settings}: "
                "delete it, or choose another --output."
            )
        rows = [task.completed(row) for row in saved["rows"]]
        done = rows[-1]["iteration"]
        seconds = rows[-1]["seconds"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    yield from rows
    losses = []
    with tqdm(
        total=iterations, initial=done, desc=f"{task.title}: {network.label}", mininterval=1
    ) as bar:
        for iteration in range(done + 1, iterations + 1):
            # Time of the processor, which other work on the machine does not stretch.
            start = time.process_time()
            x, y = task.batch(seed, iteration)
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            seconds += time.process_time() - start
            bar.update()
            if iteration % every and iteration < iterations:
                continue
            row = {
                "task": task.name,
                "network": network.label,
                "seed": seed,
                "iteration": iteration,
                "loss": sum(losses) / len(losses),
                "seconds": round(seconds, 2),
                "orthogonality_error": model.orthogonality_error(),
                **task.columns(iteration - len(losses) + 1),
                **task.measure(model),
            }
            losses = []
            rows.append(row)
            bar.set_postfix(loss=f"{row['loss']:.2e}")
            if path is not None:
                _save(path, {"settings": settings, "rows": rows, **_states(parts)})
            yield row


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed while it writes leaves the last whole file.
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _slug(label: str) -> str:
    return re.sub(r"\W+", "-", label)


def run(tasks: list[MemoryTask], chosen: list[Network], options: argparse.Namespace) -> list[Row]:
    """Train every network on every task; write, draw and return all that the folder holds."""
    folder = options.output / options.name
    for task in tasks if options.iterations else []:
        for seed in options.seeds:
            for network in chosen:
                for _ in train(
                    task,
                    network,
                    seed,
                    options.iterations,
                    every=options.every,
                    clip=options.clip,
                    folder=folder,
                    settings={name: getattr(options, name) for name in options.fixed},
                ):
                    write_csv(_history(folder, tasks), folder.with_suffix(".csv"))
    rows = _history(folder, tasks)
    draw(rows, tasks, folder.with_suffix(".png"))
    print_table(rows, tasks)
    print(f"\nCurves: {folder.with_suffix('.png')}")
    return rows


def _history(folder: Path, tasks: list[MemoryTask]) -> list[Row]:
    """Return the rows of all saved runs of some tasks, also those of earlier calls."""
    return [
        task.completed(row)
        for task in tasks
        for path in sorted((folder / task.name).glob("*.pt"))
        for row in torch.load(path)["rows"]
    ]


def write_csv(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


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
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_table(rows: list[Row], tasks: list[MemoryTask]) -> None:
    for task in tasks:
        print(f"\n{task.title}: a trivial predictor has loss {task.trivial:.4f}")
        below = f"below {task.threshold:g} at"
        print(
            f"{'network':<26}{'seed':>6}{'iterations':>12}{'loss':>10}{below:>18}"
            f"{'seconds':>10}{'‖WᴴW − I‖':>12}"
        )
        for (label, seed), history in runs(rows, task).items():
            last = history[-1]
            solved = task.solved_at(history) or "never"
            error = last["orthogonality_error"]
            print(
                f"{label:<26}{seed:>6}{last['iteration']:>12}{last['loss']:>10.1e}{solved:>18}"
                f"{last['seconds']:>10.0f}{'' if error is None else f'{error:.0e}':>12}"
            )
    print("\nIterations: how many, and the first with a loss below the threshold; W is recurrent")


def explain(**columns: str) -> None:
    """Say what the columns of a table mean."""
    width = max(map(len, columns))
    print("\n" + "\n".join(f"{name:<{width}}  {text}" for name, text in columns.items()))


def save_picture(figure: plt.Figure, path: Path) -> None:
    """Write a figure, say where, and let it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\nPicture: {path}")


def first_below(history: list[Row], threshold: float) -> int | None:
    """Return the first iteration of a history whose loss is below a threshold."""
    return next((row["iteration"] for row in history if row["loss"] < threshold), None)


def parser(name: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of the options that the experiments share."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=["orthogonal"])
    add("--k", nargs="+", type=rank, default=[8], help="ranks of a step, or 'full'")
    add("--iterations", type=int, help="0 draws what the folder holds")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--output", type=Path, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    # A run is continued only if these are as they were.
    fixed = [
        add("--hidden", type=positive, help="size of the recurrent matrix"),
        add("--nonlinearity", choices=NONLINEARITIES, default="modrelu"),
        add("--init", choices=sorted(INITS), default="henaff", help="of the recurrent matrix"),
        add("--batch", type=positive),
        add("--lr", type=float, default=1e-3, help="learning rate of all but the recurrent matrix"),
        add("--recurrent-lr", type=float, default=1e-4, help="learning rate of the recurrent one"),
        add("--angle", type=float, help="in radians, of its steps, in place of its learning rate"),
        # On both tasks these learn sooner than one second moment for the matrix.
        add("--second-moment", choices=("mean", "elementwise"), default="elementwise"),
        add("--momentum", type=float, default=0.0, help="Adam's first beta"),
        add("--smoothing", type=float, default=0.9, help="Adam's second beta"),
        add("--clip", type=float, help="largest norm of a gradient (default: any)"),
        add("--every", type=positive, help="iterations to a row of the history"),
    ]
    parser.set_defaults(name=name, fixed=[action.dest for action in fixed], **defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, **smoke: Any
) -> argparse.Namespace:
    """Parse, replace sizes for a smoke run, and check what argparse cannot."""
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(smoke)
    if any(k is not None and k > options.hidden // 2 for k in options.k):
        parser.error(f"--k must be at most hidden / 2 = {options.hidden // 2}")
    return options


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def cosine(done: int, total: int) -> float:
    """Return a factor that falls from 1 to 0 along half a period."""
    return 0.5 + 0.5 * math.cos(math.pi * done / total)


def rank(text: str) -> int | None:
    """Parse the rank of a step."""
    return None if text == "full" else positive(text)
