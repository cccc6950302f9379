"""Classify handwritten digits that are read one pixel at a time, in a scrambled order.

Three recurrent networks of the same size see each digit of scikit-learn's bundled data set as
64 pixels in a fixed random order, and name it after the last one:

- orthogonal: an OrthogonalRNN, whose recurrent matrix ProjUNNRiemannianAdam steps at rank k and in
  radians, together with all other weights;
- unconstrained: torch.nn.RNN and torch.optim.Adam, from the same initial weights;
- unconstrained, torch's init: the same with torch's own initial weights.

Each has the learning rate that does best on the validation split among the same four
(``--tune`` repeats that choice). The script writes a table, a CSV file and a picture.

``--dataset mnist --data FOLDER`` reads the 784 pixels of MNIST, in the order that the papers
use, from files that you have; its runs are saved and continued by a second call.
"""

import argparse
from functools import partial
from pathlib import Path

import _needed  # noqa: F401
import numpy as np
import torch
from _networks import Model, Network
from _options import check_ranks, not_negative, output_folder, positive, rank
from _pictures import plt, save_picture
from _tables import explain, write_csv
from _tasks import Row, Split, Task, cosine, in_epochs
from _training import train
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from geoopt_projunn import ProjUNNRiemannianAdam, param_groups
from geoopt_projunn.nn import OrthogonalRNN

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
PERMUTATION_SEED = 92916
EPOCHS = {"digits": 100, "mnist": 20}
PIXELS = {"digits": 64, "mnist": 784}
TITLES = {"digits": "Digits", "mnist": "MNIST"}


def orthogonal(options: argparse.Namespace, lr: float) -> tuple[Model, torch.optim.Optimizer]:
    layer = OrthogonalRNN(1, options.hidden, nonlinearity="relu", k=options.k)
    model = Model(layer, torch.nn.Linear(options.hidden, 10), last=True)
    if options.angle is None:
        length = PIXELS[options.dataset]
        groups = param_groups(model, lr=lr, steps=options.steps, sequence_length=length)
    else:
        groups = param_groups(model, lr=lr, angle=options.angle)
    return model, ProjUNNRiemannianAdam(groups)


def unconstrained(options: argparse.Namespace, lr: float) -> tuple[Model, torch.optim.Optimizer]:
    model, _ = orthogonal(options, lr)
    weights = model.layer.state_dict()
    model.layer = torch.nn.RNN(1, options.hidden, nonlinearity="relu")
    model.layer.load_state_dict(weights)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def torch_init(options: argparse.Namespace, lr: float) -> tuple[Model, torch.optim.Optimizer]:
    layer = torch.nn.RNN(1, options.hidden, nonlinearity="relu")
    model = Model(layer, torch.nn.Linear(options.hidden, 10), last=True)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


# Each network, and its best learning rate of LEARNING_RATES on the digits' validation split.
NETWORKS = {
    "orthogonal": (orthogonal, 1e-2),
    "unconstrained": (unconstrained, 3e-3),
    "unconstrained, torch's init": (torch_init, 1e-2),
}


def sequences(images: np.ndarray, labels: np.ndarray) -> Split:
    """Return the scrambled pixels (pixels, m, 1) of images with values up to 1, and labels."""
    pixels = images.reshape(len(images), -1).astype("float32")
    order = np.random.RandomState(PERMUTATION_SEED).permutation(pixels.shape[1])
    scrambled = np.ascontiguousarray(pixels[:, order].T)
    return torch.from_numpy(scrambled).unsqueeze(-1), torch.from_numpy(labels)


def load_splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sequences of scikit-learn's digits."""
    digits = load_digits()
    rest, test, rest_labels, test_labels = train_test_split(
        digits.images / 16, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=287, stratify=rest_labels, random_state=0
    )
    return (
        sequences(train, train_labels),
        sequences(validation, validation_labels),
        sequences(test, test_labels),
    )


def load_mnist(folder: Path) -> tuple[Split, Split, Split]:
    """Return training, validation and test sequences of MNIST from a folder of torchvision's."""
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise SystemExit(
            "--dataset mnist reads its files through torchvision, which is not installed: "
            "pip install torchvision"
        ) from None
    try:
        parts = [MNIST(str(folder), train=part, download=False) for part in (True, False)]
    except RuntimeError:
        raise SystemExit(
            f"No MNIST files in {folder / 'MNIST' / 'raw'}: fetch them once by "
            f"torchvision.datasets.MNIST({str(folder)!r}, download=True), name another folder by "
            "--data, or leave --dataset out for scikit-learn's digits, which need no file."
        ) from None
    (images, labels), test = ((part.data.numpy() / 255, part.targets.numpy()) for part in parts)
    held = len(images) // 12  # 5000 of 60 000
    return (
        sequences(images[:-held], labels[:-held]),
        sequences(images[-held:], labels[-held:]),
        sequences(*test),
    )


@torch.no_grad()
def accuracy(model: Model, split: Split) -> float:
    pixels, labels = split
    # In parts, for the memory that the states of a whole data set would take.
    parts = zip(pixels.split(500, 1), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def reading(options: argparse.Namespace) -> tuple[Task, int]:
    """Return the task and its iterations in an epoch."""
    splits = load_splits() if options.dataset == "digits" else load_mnist(options.data)
    training, validation, test = splits
    batch, in_epoch = in_epochs(*training, options.batch)
    task = Task(
        name=f"permuted_{options.dataset}",
        title=TITLES[options.dataset],
        batch=batch,
        loss=torch.nn.functional.cross_entropy,
        measure=lambda model: {
            "validation_accuracy": accuracy(model, validation),
            "test_accuracy": accuracy(model, test),
        },
        decay=lambda done: cosine(done // in_epoch, options.epochs),
    )
    return task, in_epoch


def train_one(
    name: str, lr: float, task: Task, in_epoch: int, options: argparse.Namespace
) -> list[Row]:
    """Train one network and return its history, a row for each epoch."""
    history = train(
        task,
        Network(name, partial(NETWORKS[name][0], options, lr)),
        options.seed,
        options.epochs * in_epoch,
        every=in_epoch,
        clip=1.0,
        # Digits take a minute, and learning rates are compared anew.
        folder=options.output if options.dataset == "mnist" and not options.tune else None,
        settings={
            "lr": lr,
            **{key: getattr(options, key) for key in ("hidden", "k", "angle", "batch", "epochs")},
        },
    )
    return list(history)


def tune(task: Task, in_epoch: int, options: argparse.Namespace) -> None:
    """Print the validation accuracy of every network at every learning rate."""
    for name in NETWORKS:
        scores = {}
        for lr in LEARNING_RATES:
            last = train_one(name, lr, task, in_epoch, options)[-1]
            scores[lr] = last["validation_accuracy"]
        print(name, {f"{lr:g}": f"{score:.3f}" for lr, score in scores.items()})


def draw(histories: dict[str, list[Row]], title: str, path: Path) -> None:
    """Draw test accuracy and orthogonality error against epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, history in histories.items():
        epochs = range(1, len(history) + 1)
        left.plot(epochs, [100 * row["test_accuracy"] for row in history], label=name)
        right.semilogy(epochs, [row["orthogonality_error"] for row in history], label=name)
    left.axhline(10, color="0.3", linestyle="--", label="guessing")
    left.set_ylim(0, 102)
    left.set(xlabel="epoch", ylabel="test accuracy (%)", title=f"{title}, one pixel at a time")
    right.set(
        xlabel="epoch", ylabel="‖WᵀW − I‖", title="Orthogonality error of the recurrent matrix"
    )
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_picture(figure, path)


def print_table(histories: dict[str, list[Row]]) -> None:
    print(f"\n{'network':<30}{'test accuracy':>14}{'‖WᵀW − I‖':>14}")
    for name, (*_, last) in histories.items():
        print(f"{name:<30}{last['test_accuracy']:>14.1%}{last['orthogonality_error']:>14.1e}")
    explain(
        **{
            "test accuracy": "digits that were named rightly, of those not trained on",
            "‖WᵀW − I‖": "how far the recurrent matrix is from orthogonal; 1e-5 is rounding",
        }
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="permuted_digits.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=EPOCHS, default="digits")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--epochs", type=positive, help="100 for digits, 20 for mnist")
    parser.add_argument("--hidden", type=positive, default=128, help="size of the recurrent matrix")
    parser.add_argument("--k", type=rank, default=8, help="rank of a step, or 'full'")
    parser.add_argument(
        "--angle", type=float, help="of its steps, in radians (default: what suits their number)"
    )
    parser.add_argument("--lr", type=float, help="one learning rate for all networks")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--output", type=output_folder, default=Path("outputs"), help="folder to write to"
    )
    parser.add_argument("--tune", action="store_true", help="compare learning rates instead")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    options.epochs = options.epochs or EPOCHS[options.dataset]
    if options.smoke:
        options.epochs, options.hidden = 2, 16
    check_ranks(parser, [options.k], "hidden", options.hidden)
    task, in_epoch = reading(options)
    options.steps = options.epochs * in_epoch
    if options.tune:
        tune(task, in_epoch, options)
        return []
    histories = {
        name: train_one(name, lr if options.lr is None else options.lr, task, in_epoch, options)
        for name, (_, lr) in NETWORKS.items()
    }
    rows = [row for history in histories.values() for row in history]
    write_csv(rows, options.output / f"{task.name}.csv")
    print_table(histories)
    draw(histories, task.title, options.output / f"{task.name}.png")
    return rows


if __name__ == "__main__":
    main()
