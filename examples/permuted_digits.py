"""Classify handwritten digits that are read one pixel at a time, in a scrambled order.

Three recurrent networks of the same size see each digit of scikit-learn's bundled data set as
64 pixels in a fixed random order, and name it after the last one:

- orthogonal: the recurrent matrix is a point on LowRankUnitary(k=1), and one
  ProjUNNRiemannianAdam steps it together with all other weights;
- unconstrained: torch.nn.RNN and torch.optim.Adam, from the same initial weights;
- unconstrained, torch's init: the same with torch's own initial recurrent matrix.

Each has the learning rate that does best on the validation split among the same four
(``--tune`` repeats that choice). The script writes a table, a CSV file and a picture.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import geoopt
import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam

mpl.use("Agg")
import matplotlib.pyplot as plt

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
PERMUTATION_SEED = 92916

Split = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Record:
    """What is measured after an epoch."""

    network: str
    epoch: int
    loss: float
    validation_accuracy: float
    test_accuracy: float
    orthogonality_error: float


class Classifier(torch.nn.Module):
    """A recurrent network that reads a sequence and classifies its last state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(1, hidden, nonlinearity="relu", batch_first=True)
        self.readout = torch.nn.Linear(hidden, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(pixels)
        return self.readout(states[:, -1])

    def orthogonality_error(self) -> float:
        weight = self.rnn.weight_hh_l0.detach()
        return float(torch.linalg.matrix_norm(weight.mT @ weight - torch.eye(len(weight))))


def block_rotations(n: int) -> torch.Tensor:
    """Return rotations by random angles in n / 2 planes (Henaff et al., 2016)."""
    generator = torch.zeros(n, n)
    even = torch.arange(0, n - 1, 2)
    angles = (2 * torch.rand(len(even)) - 1) * math.pi
    generator[even, even + 1], generator[even + 1, even] = angles, -angles
    return torch.linalg.matrix_exp(generator)


def load_splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test pixels (m, 64, 1) with their labels."""
    digits = load_digits()
    order = np.random.default_rng(PERMUTATION_SEED).permutation(64)
    pixels = (digits.images.reshape(-1, 64)[:, order] / 16).astype("float32")
    rest, test, rest_labels, test_labels = train_test_split(
        pixels, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=287, stratify=rest_labels, random_state=0
    )

    def split(x: np.ndarray, y: np.ndarray) -> Split:
        return torch.from_numpy(x).unsqueeze(-1), torch.from_numpy(y)

    return (
        split(train, train_labels),
        split(validation, validation_labels),
        split(test, test_labels),
    )


def orthogonal(hidden: int, k: int, lr: float) -> tuple[Classifier, torch.optim.Optimizer]:
    model = Classifier(hidden)
    manifold = LowRankUnitary(k=k)
    model.rnn.weight_hh_l0 = geoopt.ManifoldParameter(block_rotations(hidden), manifold=manifold)
    return model, ProjUNNRiemannianAdam(model.parameters(), lr=lr)


def unconstrained(hidden: int, k: int, lr: float) -> tuple[Classifier, torch.optim.Optimizer]:
    model = Classifier(hidden)
    model.rnn.weight_hh_l0.data = block_rotations(hidden)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def torch_init(hidden: int, k: int, lr: float) -> tuple[Classifier, torch.optim.Optimizer]:
    model = Classifier(hidden)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


# Each network, and its best learning rate of LEARNING_RATES on the validation split.
NETWORKS = {
    "orthogonal": (orthogonal, 1e-2),
    "unconstrained": (unconstrained, 3e-3),
    "unconstrained, torch's init": (torch_init, 1e-3),
}


@torch.no_grad()
def accuracy(model: Classifier, split: Split) -> float:
    pixels, labels = split
    return float((model(pixels).argmax(1) == labels).float().mean())


def train(name: str, lr: float, options: argparse.Namespace) -> Iterator[Record]:
    """Train one network and yield a record after each epoch."""
    torch.manual_seed(options.seed)
    (pixels, labels), validation, test = load_splits()
    model, optimizer = NETWORKS[name][0](options.hidden, options.k, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    with tqdm(range(1, options.epochs + 1), desc=f"{name}, lr {lr:g}", unit="epoch") as epochs:
        for epoch in epochs:
            total = 0.0
            for batch in torch.randperm(len(labels)).split(options.batch):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                total += loss.item() * len(batch)
            schedule.step()
            record = Record(
                name,
                epoch,
                total / len(labels),
                accuracy(model, validation),
                accuracy(model, test),
                model.orthogonality_error(),
            )
            epochs.set_postfix(loss=f"{record.loss:.3f}", test=f"{record.test_accuracy:.1%}")
            yield record


def tune(options: argparse.Namespace) -> None:
    """Print the validation accuracy of every network at every learning rate."""
    for name in NETWORKS:
        scores = {}
        for lr in LEARNING_RATES:
            *_, last = train(name, lr, options)
            scores[lr] = last.validation_accuracy
        print(name, {f"{lr:g}": f"{score:.3f}" for lr, score in scores.items()})


def draw(records: list[Record], path: Path) -> None:
    """Draw test accuracy and orthogonality error against epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in NETWORKS:
        run = [record for record in records if record.network == name]
        epochs = [record.epoch for record in run]
        left.plot(epochs, [100 * record.test_accuracy for record in run], label=name)
        right.semilogy(epochs, [record.orthogonality_error for record in run], label=name)
    left.set(xlabel="epoch", ylabel="test accuracy (%)", title="Digits, one pixel at a time")
    right.set(
        xlabel="epoch", ylabel="‖WᵀW − I‖", title="Orthogonality error of the recurrent matrix"
    )
    left.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_csv(records: list[Record], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(vars(records[0])))
        writer.writeheader()
        writer.writerows(vars(record) for record in records)


def print_table(records: list[Record]) -> None:
    print(f"\n{'network':<30}{'test accuracy':>14}{'‖WᵀW − I‖':>14}")
    for name in NETWORKS:
        last = [record for record in records if record.network == name][-1]
        print(f"{name:<30}{last.test_accuracy:>14.1%}{last.orthogonality_error:>14.1e}")


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=128, help="size of the recurrent matrix")
    parser.add_argument("--k", type=int, default=1, help="rank of a step of the orthogonal one")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--tune", action="store_true", help="compare learning rates instead")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.hidden = 2, 16
    if options.tune:
        tune(options)
        return []
    records = [record for name in NETWORKS for record in train(name, NETWORKS[name][1], options)]
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(records, options.output / "permuted_digits.csv")
    draw(records, options.output / "permuted_digits.png")
    print_table(records)
    print(f"\nCurves: {options.output / 'permuted_digits.png'}")
    return records


if __name__ == "__main__":
    main()
