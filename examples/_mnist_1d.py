"""MNIST-1D, and networks that are compared on it."""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _networks import Model, Network
from _options import not_negative, output_folder, positive, rank
from _pictures import plt, save_picture
from _tables import write_csv
from _tasks import Row, Split, Task, cosine, in_epochs
from _training import train

Build = Callable[[str, argparse.Namespace], tuple[Model, torch.optim.Optimizer]]


def load() -> tuple[Split, Split]:
    """Return training and test sequences (40, m, 1), and their labels."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError:
        raise SystemExit(
            "The package mnist1d, which makes the data here and needs no network for that, is not "
            "installed: pip install mnist1d"
        ) from None
    data = make_dataset(get_dataset_args())

    def split(part: str) -> Split:
        x = torch.from_numpy(np.ascontiguousarray(data["x" + part].T, dtype="float32"))
        return x.unsqueeze(-1), torch.from_numpy(data["y" + part]).long()

    return split(""), split("_test")


def reading(size: int, epochs: int) -> tuple[Task, int]:
    """Return the task and its iterations in an epoch."""
    training, (x_test, y_test) = load()
    batch, in_epoch = in_epochs(*training, size)

    @torch.no_grad()
    def measure(model: torch.nn.Module) -> dict[str, float]:
        return {"test_accuracy": float((model(x_test).argmax(1) == y_test).float().mean())}

    task = Task(
        name="mnist_1d",
        title="MNIST-1D",
        batch=batch,
        loss=torch.nn.functional.cross_entropy,
        measure=measure,
        decay=lambda done: cosine(done, epochs * in_epoch),
    )
    return task, in_epoch


def parser(name: str, description: str, networks: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that the scripts share."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.set_defaults(name=name)
    add = parser.add_argument
    add("--networks", nargs="+", choices=networks, default=list(networks))
    add("--epochs", type=positive, default=30)
    add("--k", type=rank, default=8, help="highest rank of a step, or 'full'")
    add("--batch", type=positive, default=100)
    add("--seed", type=not_negative, default=0)
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    return parser


def compare(build: Build, options: argparse.Namespace, clip: float | None = None) -> list[Row]:
    """Train every network; write, print, draw and return the rows of their histories."""
    task, in_epoch = reading(options.batch, options.epochs)
    histories = {}
    for name in options.networks:
        network = Network(name, partial(build, name, options))
        iterations = options.epochs * in_epoch
        run = train(task, network, options.seed, iterations, every=in_epoch, clip=clip)
        histories[name] = list(run)
    rows = [row for history in histories.values() for row in history]
    path = options.output / options.name
    write_csv(rows, path.with_suffix(".csv"))
    print_table(histories)
    draw(histories, path.with_suffix(".png"))
    return rows


def draw(histories: dict[str, list[Row]], path: Path) -> None:
    """Draw test accuracy against epochs."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, history in histories.items():
        epochs = range(1, len(history) + 1)
        axes.plot(epochs, [100 * row["test_accuracy"] for row in history], label=name)
    axes.axhline(10, color="0.3", linestyle="--", label="guessing")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="MNIST-1D", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_picture(figure, path)


def print_table(histories: dict[str, list[Row]]) -> None:
    print(f"\n{'network':<24}{'test accuracy':>14}{'90% after epoch':>17}{'seconds':>9}")
    for name, history in histories.items():
        good = (i for i, row in enumerate(history, 1) if row["test_accuracy"] >= 0.9)
        accuracy, seconds = history[-1]["test_accuracy"], history[-1]["seconds"]
        print(f"{name:<24}{accuracy:>14.1%}{next(good, 'never'):>17}{seconds:>9.0f}")
    print("\n90% after epoch: the first epoch with this test accuracy")
