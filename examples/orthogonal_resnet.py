"""Classify images by the paper's ResNet9, its convolutions orthogonal or unconstrained.

Networks of the same width see the same batches:

- unconstrained: torch's 3 x 3 convolutions with circular padding;
- full width, k = 1 and k = 4: OrthogonalConv2d, whose matrices ProjUNNRiemannianSGD steps at
  rank k beside all other weights. They start at random: from the identity new channels would be
  zero, and the normalization after them blow up what is not there;
- small kernels, k = 1 and k = 4: BlockOrthogonalConv2d, 3 x 3, by the same optimizer;
- AOC: orthogonium's 3 x 3 convolution, which is orthogonalized in each forward pass, by torch's
  SGD; it takes part if that package is installed.

scikit-learn's digits by default; ``--data`` names a file with the arrays x_train, y_train, x_test,
y_test: Keras' mnist.npz, or CIFAR10 or CIFAR100 saved so by numpy.savez, images (m, h, w) or
(m, h, w, c) of bytes. The script writes a table, a CSV file and a picture.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import _needed  # noqa: F401
import matplotlib as mpl
import numpy as np
import torch
from _options import at_least, not_negative, output_folder, positive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.nn import BlockOrthogonalConv2d, OrthogonalConv2d

mpl.use("Agg")
import matplotlib.pyplot as plt

try:
    from orthogonium.layers import AdaptiveOrthoConv2d
except ImportError:
    AdaptiveOrthoConv2d = None
    print("orthogonium is not installed, so the network AOC is left out: pip install orthogonium")


# From channels in, channels out and the size of the images to a convolution.
Make = Callable[[int, int, int], torch.nn.Module]
CIRCULAR = {"padding": 1, "padding_mode": "circular", "bias": False}


def full_width(k: int) -> Make:
    return lambda i, o, size: OrthogonalConv2d(i, o, size, bias=False, init="haar", k=k)


def small(k: int) -> Make:
    # No kernel may be larger than its image, which after two poolings of 8 x 8 is 2 x 2.
    return lambda i, o, size: BlockOrthogonalConv2d(i, o, min(3, size), bias=False, k=k)


NETWORKS: dict[str, Make] = {
    "unconstrained": lambda i, o, _: torch.nn.Conv2d(i, o, 3, **CIRCULAR),
    **{f"full width, k = {k}": full_width(k) for k in (1, 4)},
    **{f"small kernels, k = {k}": small(k) for k in (1, 4)},
}
if AdaptiveOrthoConv2d is not None:
    NETWORKS["AOC"] = lambda i, o, _: AdaptiveOrthoConv2d(i, o, 3, **CIRCULAR)
Split = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Record:
    """What is measured after an epoch; epoch 0 is before training."""

    network: str
    epoch: int
    loss: float
    test_accuracy: float
    gain: float
    seconds: float


def load(path: Path | None) -> tuple[Split, Split]:
    """Return images (m, c, h, w) with values in [0, 1] and labels, for training and test."""
    if path is None:
        digits = load_digits()
        x, x_test, y, y_test = train_test_split(
            digits.images / 16, digits.target, test_size=360, stratify=digits.target, random_state=0
        )
    else:
        names = ("x_train", "y_train", "x_test", "y_test")
        try:
            with np.load(path) as arrays:
                x, y, x_test, y_test = (arrays[name] for name in names)
        except Exception as error:  # numpy's and zipfile's errors are of many types
            raise SystemExit(
                f"--data {path} must be a file of numpy.savez with the arrays {', '.join(names)}, "
                f"but: {error}. Leave --data out for scikit-learn's digits, which need no file."
            ) from None
        x, x_test = x / 255, x_test / 255

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        stack = torch.from_numpy(images.astype("float32"))
        stack = stack.unsqueeze(1) if stack.dim() == 3 else stack.permute(0, 3, 1, 2)
        return stack.contiguous(), torch.from_numpy(labels.astype("int64")).flatten()

    return split(x, y), split(x_test, y_test)


class Block(torch.nn.Module):
    """Convolution, normalization, ReLU, and half the size."""

    def __init__(self, ins: int, outs: int, size: int, make: Make, pool: bool = False) -> None:
        super().__init__()
        self.conv = make(ins, outs, size)
        self.norm = torch.nn.BatchNorm2d(outs)
        self.pool = pool
        self.probe = (ins, size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return torch.nn.functional.max_pool2d(y, 2) if self.pool else y


class ResNet9(torch.nn.Module):
    """Eight convolutions, two shortcuts around two of them each, and a linear readout."""

    def __init__(self, channels: int, size: int, classes: int, width: int, make: Make) -> None:
        super().__init__()
        w = width
        self.enter = torch.nn.Sequential(
            Block(channels, w, size, make), Block(w, 2 * w, size, make, pool=True)
        )
        half, quarter = size // 2, size // 4
        self.first = torch.nn.Sequential(
            Block(2 * w, 2 * w, half, make), Block(2 * w, 2 * w, half, make)
        )
        self.narrow = torch.nn.Sequential(
            Block(2 * w, 4 * w, half, make, pool=True), Block(4 * w, 8 * w, quarter, make)
        )
        self.second = torch.nn.Sequential(
            Block(8 * w, 8 * w, quarter, make), Block(8 * w, 8 * w, quarter, make)
        )
        self.readout = torch.nn.Linear(8 * w, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        x = x + self.first(x)
        x = self.narrow(x)
        x = x + self.second(x)
        return self.readout(x.amax((2, 3)))

    def gain(self) -> float:
        """Return the product of the convolutions' largest singular values, by power iteration."""
        total = 1.0
        for block in self.modules():
            if isinstance(block, Block):
                x = torch.randn(1, *block.probe)
                for _ in range(20):
                    x = (x / x.norm()).requires_grad_()
                    y = block.conv(x)
                    (x,) = torch.autograd.grad(y, x, y.detach())
                total *= float(x.norm().sqrt())
        return total


@torch.no_grad()
def accuracy(model: ResNet9, split: Split) -> float:
    model.eval()
    images, labels = split
    answers = torch.cat([model(part).argmax(1) for part in images.split(500)])
    model.train()
    return float((answers == labels).float().mean())


def train(name: str, data: tuple[Split, Split], options: argparse.Namespace) -> Iterator[Record]:
    torch.manual_seed(options.seed)
    (images, labels), test = data
    channels, size = images.shape[1], images.shape[-1]
    model = ResNet9(channels, size, int(labels.max()) + 1, options.width, NETWORKS[name])
    constrained = any(hasattr(p, "manifold") for p in model.parameters())
    kind = ProjUNNRiemannianSGD if constrained else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=options.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    yield Record(name, 0, float("nan"), accuracy(model, test), model.gain(), 0.0)
    seconds = 0.0
    with tqdm(range(1, options.epochs + 1), desc=name, unit="epoch") as epochs:
        for epoch in epochs:
            total, begun = 0.0, time.perf_counter()
            for batch in torch.randperm(len(labels)).split(options.batch):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            schedule.step()
            seconds += time.perf_counter() - begun
            loss = total / len(labels)
            record = Record(name, epoch, loss, accuracy(model, test), model.gain(), seconds)
            epochs.set_postfix(loss=f"{record.loss:.3f}", test=f"{record.test_accuracy:.1%}")
            yield record


def draw(records: list[Record], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in NETWORKS:
        run = [record for record in records if record.network == name]
        epochs = [record.epoch for record in run]
        left.plot(epochs, [100 * record.test_accuracy for record in run], label=name)
        right.semilogy(epochs, [record.gain for record in run], label=name)
    left.set(xlabel="epoch", ylabel="test accuracy (%)", title="ResNet9")
    right.set(xlabel="epoch", ylabel="∏ ‖J‖", title="Gain of all convolutions together")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=".npz file (default: scikit-learn's digits)")
    parser.add_argument(
        "--width", type=at_least(8, "for k = 4"), default=8, help="the paper's is 64"
    )
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--output", type=output_folder, default=Path("outputs"), help="folder to write to"
    )
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.width, options.batch = 2, 8, 512
    data = load(options.data)
    size = data[0][0].shape[-1]
    if data[0][0].shape[-2] != size or size % 4:
        parser.error(f"images must be square, of a size that 4 divides, got {size}")
    records = [record for name in NETWORKS for record in train(name, data, options)]
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "orthogonal_resnet.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(vars(records[0])))
        writer.writeheader()
        writer.writerows(vars(record) for record in records)
    draw(records, options.output / "orthogonal_resnet.png")
    columns = ("test accuracy", "gain before", "gain after", "seconds")
    print(f"\n{'network':<22}" + "".join(f"{column:>14}" for column in columns))
    for name in NETWORKS:
        run = [record for record in records if record.network == name]
        first, last = run[0], run[-1]
        print(
            f"{name:<22}{last.test_accuracy:>14.1%}{first.gain:>14.3g}{last.gain:>14.3g}"
            f"{last.seconds:>14.1f}"
        )
    print("\nGain: by how much all convolutions together may enlarge a change of the image")
    return records


if __name__ == "__main__":
    main()
