"""Classify MNIST-1D: 40 numbers in a row, in which a digit is hidden among noise.

Recurrent networks of the same size read the numbers one by one, and name the digit after the last
one: torch.nn.GRU, an OrthogonalGRU, the same with the recurrent matrix that it starts with, and an
OrthogonalRNN, which has no gates that could forget the noise. The script writes a table, a CSV
file and a picture.

    python examples/mnist_1d.py              # two minutes
    python examples/mnist_1d.py --smoke      # seconds, for a test

The package mnist1d makes the data on this machine; it is part of the extra "examples".
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _needed  # noqa: F401
import numpy as np
import torch
from _runs import Model, Network, Row, Task, adam, cosine, plt, positive, rank, train, write_csv

from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN

BETAS = (0.9, 0.999)
Split = tuple[torch.Tensor, torch.Tensor]
Make = Callable[[int, int | None], torch.nn.RNNBase]

# Each layer, the learning rate, and that of the recurrent matrix: None for one of torch's, 0 for
# one that stays as it is. The best of a few, 3e-3 to 2e-2 for all but the recurrent matrix.
NETWORKS: dict[str, tuple[Make, float, float | None]] = {
    "GRU": (lambda hidden, k: torch.nn.GRU(1, hidden), 1e-2, None),
    "orthogonal GRU": (lambda hidden, k: OrthogonalGRU(1, hidden, k=k), 1e-2, 3e-3),
    "orthogonal GRU, frozen": (lambda hidden, k: OrthogonalGRU(1, hidden, k=k), 1e-2, 0.0),
    "orthogonal RNN": (lambda hidden, k: OrthogonalRNN(1, hidden, k=k, init="cayley"), 1e-2, 1e-3),
}


def build(name: str, hidden: int, k: int | None) -> tuple[Model, torch.optim.Optimizer]:
    make, lr, recurrent_lr = NETWORKS[name]
    model = Model(make(hidden, k), torch.nn.Linear(hidden, 10), last=True)
    if recurrent_lr:
        return model, adam(model, lr, recurrent_lr, BETAS)
    model.layer.weight_hh_l0.requires_grad_(recurrent_lr is None)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.Adam(trained, lr, BETAS)


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
    (x, y), (x_test, y_test) = load()
    in_epoch = math.ceil(len(y) / size)

    def batch(seed: int, iteration: int) -> Split:
        epoch, place = divmod(iteration - 1, in_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(y))
        chosen = order[place * size : (place + 1) * size]
        return x[:, chosen], y[chosen]

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
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_table(histories: dict[str, list[Row]]) -> None:
    print(f"\n{'network':<24}{'test accuracy':>14}{'90% after epoch':>17}{'seconds':>9}")
    for name, history in histories.items():
        good = (i for i, row in enumerate(history, 1) if row["test_accuracy"] >= 0.9)
        accuracy, seconds = history[-1]["test_accuracy"], history[-1]["seconds"]
        print(f"{name:<24}{accuracy:>14.1%}{next(good, 'never'):>17}{seconds:>9.0f}")
    print("\n90% after epoch: the first epoch with this test accuracy")


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="mnist_1d.py", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--epochs", type=positive, default=30)
    parser.add_argument("--hidden", type=positive, default=128, help="size of the state")
    parser.add_argument("--k", type=rank, default=8, help="rank of a step, or 'full'")
    parser.add_argument("--batch", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.hidden, options.batch = 2, 16, 1000
    if options.k is not None and options.k > options.hidden // 2:
        parser.error(f"--k must be at most hidden / 2 = {options.hidden // 2}")
    task, in_epoch = reading(options.batch, options.epochs)
    histories = {}
    for name in options.networks:
        network = Network(name, partial(build, name, options.hidden, options.k))
        run = train(task, network, options.seed, options.epochs * in_epoch, every=in_epoch, clip=1)
        histories[name] = list(run)
    rows = [row for history in histories.values() for row in history]
    write_csv(rows, options.output / "mnist_1d.csv")
    draw(histories, options.output / "mnist_1d.png")
    print_table(histories)
    print(f"\nCurves: {options.output / 'mnist_1d.png'}")
    return rows


if __name__ == "__main__":
    main()
