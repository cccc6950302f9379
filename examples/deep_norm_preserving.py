"""Train networks of a hundred convolutions, without normalization or shortcuts.

Three networks of the same shape see scikit-learn's digits: a hundred convolutions with
activations that sort channels in pairs and so preserve norms, and a linear readout.

- orthogonal: OrthogonalConv2d from the identity, stepped at rank k by ProjUNNRiemannianSGD;
- unconstrained: torch's circular 3 x 3 convolutions with torch's own initial weights and SGD,
  which forget their input before they reach the hundredth layer;
- unconstrained, identity: the same, each convolution starting at the identity.

The script writes a table, a CSV file and a picture.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _needed  # noqa: F401
import matplotlib as mpl
import torch
from _options import check_ranks, not_negative, output_folder, positive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalConv2d

mpl.use("Agg")
import matplotlib.pyplot as plt

LEARNING_RATES = {"orthogonal": 0.05, "unconstrained": 0.05, "unconstrained, identity": 1e-3}


@dataclass
class Record:
    """What is measured after an epoch."""

    network: str
    epoch: int
    loss: float
    test_accuracy: float
    gradient_ratio: float


class Sorted(torch.nn.Module):
    """Sort the channels two by two: not linear, and of unchanged norm (Anil et al., 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.unflatten(1, (-1, 2))
        low, high = pairs.amin(2), pairs.amax(2)
        return torch.stack((low, high), 2).flatten(1, 2)


class Deep(torch.nn.Module):
    """Blocks of 2 x 2 pixels as channels, then layers of one shape."""

    def __init__(self, name: str, depth: int, channels: int, k: int) -> None:
        super().__init__()

        def layer(inputs: int) -> torch.nn.Module:
            if name == "orthogonal":
                return OrthogonalConv2d(inputs, channels, 4, bias=False, k=k)
            conv = torch.nn.Conv2d(inputs, channels, 3, padding=1, padding_mode="circular")
            if name == "unconstrained, identity":
                torch.nn.init.dirac_(conv.weight)
                torch.nn.init.zeros_(conv.bias)
            return conv

        self.layers = torch.nn.ModuleList(layer(channels if i else 4) for i in range(depth))
        self.sorted = Sorted()
        self.readout = torch.nn.Linear(16 * channels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pixel_unshuffle(images, 2)
        for layer in self.layers:
            x = self.sorted(layer(x))
        return self.readout(x.flatten(1))

    def gradient_ratio(self) -> float:
        """Return the gradient of the first layer over that of the last."""
        first, last = (self.layers[i].weight.grad.norm() for i in (0, -1))
        return float(first / last.clamp(min=1e-30))


def load_splits() -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    digits = load_digits()
    parts = train_test_split(
        (digits.images[:, None] / 16).astype("float32"),
        digits.target,
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return (train, train_labels), (test, test_labels)


def train(name: str, options: argparse.Namespace) -> Iterator[Record]:
    torch.manual_seed(options.seed)
    (images, labels), (test, test_labels) = load_splits()
    model = Deep(name, options.depth, options.channels, options.k)
    kind = ProjUNNRiemannianSGD if name == "orthogonal" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=LEARNING_RATES[name], momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    with tqdm(range(1, options.epochs + 1), desc=name, unit="epoch") as epochs:
        for epoch in epochs:
            total = 0.0
            for batch in torch.randperm(len(labels)).split(options.batch):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                ratio = model.gradient_ratio()
                optimizer.step()
                total += loss.item() * len(batch)
            schedule.step()
            with torch.no_grad():
                right = (model(test).argmax(1) == test_labels).float().mean()
            epochs.set_postfix(loss=f"{total / len(labels):.3f}", test=f"{right:.1%}")
            yield Record(name, epoch, total / len(labels), float(right), ratio)


def draw(records: list[Record], path: Path, depth: int) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in LEARNING_RATES:
        run = [record for record in records if record.network == name]
        epochs = [record.epoch for record in run]
        left.plot(epochs, [100 * record.test_accuracy for record in run], label=name)
        right.semilogy(epochs, [max(record.gradient_ratio, 1e-30) for record in run], label=name)
    left.set(
        xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100), title=f"Digits, depth {depth}"
    )
    right.set(xlabel="epoch", ylabel="‖gradient‖, first layer / last layer", title="Gradients")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=positive, default=100)
    parser.add_argument("--channels", type=positive, default=8)
    parser.add_argument("--k", type=positive, default=1, help="rank of a step")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--output", type=output_folder, default=Path("outputs"), help="folder to write to"
    )
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.depth, options.epochs, options.batch = 10, 2, 512
    check_ranks(parser, [options.k], "channels", options.channels)
    records = [record for name in LEARNING_RATES for record in train(name, options)]
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "deep_norm_preserving.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(vars(records[0])))
        writer.writeheader()
        writer.writerows(vars(record) for record in records)
    draw(records, options.output / "deep_norm_preserving.png", options.depth)
    print("\nGradient of the first layer over that of the last: near 1 if nothing fades on the way")
    print(f"{'network':<26}{'test accuracy':>14}{'first / last gradient':>24}")
    for name in LEARNING_RATES:
        last = [record for record in records if record.network == name][-1]
        print(f"{name:<26}{last.test_accuracy:>14.1%}{last.gradient_ratio:>24.1e}")
    return records


if __name__ == "__main__":
    main()
