"""Adapt a small transformer to a shifted task by rotations of its frozen weights.

A transformer learns to read digits, eight rows of pixels to an image, and then has to read them
lying on their side, from a few labelled ones. Orthogonal fine-tuning keeps a weight W and learns an
orthogonal R for WR: whole, or blocks along its diagonal, which are one batch. One rate in radians
serves every size. Afterwards R is merged, and the network is as fast as before. LoRA, which adds a
matrix of rank 4, and training all weights stand beside it.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _needed  # noqa: F401
import geoopt
import torch
from _runs import plt, positive, save_picture
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.utils import parametrize
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD


class Rotated(torch.nn.Module):
    def __init__(self, weight: Tensor, block: int | None) -> None:
        super().__init__()
        size = block or weight.shape[1]
        start = torch.eye(size, dtype=weight.dtype).repeat(weight.shape[1] // size, 1, 1)
        self.blocks = geoopt.ManifoldParameter(start, manifold=LowRankUnitary(k=4))

    def forward(self, weight: Tensor) -> Tensor:
        columns = weight.unflatten(1, (len(self.blocks), -1))
        return torch.einsum("abi,bij->abj", columns, self.blocks).flatten(1)


class LowRank(torch.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(4, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = torch.nn.Parameter(torch.zeros(len(weight), 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Reader(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Linear(8, 64)
        self.places = torch.nn.Parameter(torch.randn(8, 64))
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(images) + self.places).mean(1))


def adapt(model: Reader, make: Callable[[Tensor], torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Freeze a model, make its matrices functions of themselves, and return what is to train."""
    model.requires_grad_(False)
    for layer in model.encoder.layers:
        for module in (layer.self_attn, layer.self_attn.out_proj, layer.linear1, layer.linear2):
            name = "in_proj_weight" if module is layer.self_attn else "weight"
            parametrize.register_parametrization(module, name, make(getattr(module, name)))
    return [p for p in model.parameters() if p.requires_grad]


def merge(model: Reader) -> None:
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)


def rotations(model: Reader, block: int | None) -> torch.optim.Optimizer:
    trained = adapt(model, partial(Rotated, block=block))
    return ProjUNNRiemannianSGD(trained, 0.15, 0.9, nesterov=True, normalize="angle")


METHODS: dict[str, Callable[[Reader], torch.optim.Optimizer]] = {  # the best of three rates
    "rotations, whole": partial(rotations, block=None),
    "rotations, blocks of 32": partial(rotations, block=32),
    "rotations, blocks of 8": partial(rotations, block=8),
    "LoRA, rank 4": lambda model: torch.optim.Adam(adapt(model, LowRank), 0.03),
    "all weights": lambda model: torch.optim.Adam(model.parameters(), lr=0.001),
}


def train(
    name: str, model: Reader, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> float:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    start = time.process_time()
    for _ in tqdm(range(steps), desc=name, mininterval=1):
        optimizer.zero_grad()
        batch = torch.randint(len(x), (64,))
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> list[tuple]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=positive, default=200)
    add("--images", type=positive, default=200, help="labelled ones of the new task")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    steps = 5 if options.smoke else options.steps
    torch.manual_seed(options.seed)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float().unflatten(1, (8, 8)) / 16
    test, rest = torch.randperm(len(x)).tensor_split([500])
    x, y, x_test, y_test = x[rest], y[rest], x[test], y[test]
    model = Reader()
    train("upright", model, torch.optim.Adam(model.parameters(), 0.003), x, y, 2 * steps)

    def accuracy(model: Reader, turns: int) -> float:
        return float((model(x_test.rot90(turns, (1, 2))).argmax(1) == y_test).float().mean())

    rows = [("not adapted", 0, accuracy(model, 0), accuracy(model, 1), 0.0)]
    side = x[: options.images].rot90(1, (1, 2)), y[: options.images]
    for name, make in METHODS.items():
        torch.manual_seed(options.seed)
        adapted = copy.deepcopy(model)
        optimizer = make(adapted)
        count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        seconds = train(name, adapted, optimizer, *side, steps)
        merge(adapted)
        rows.append((name, count, accuracy(adapted, 0), accuracy(adapted, 1), seconds))
    print("\nmethod                     trained numbers  upright  on its side  seconds")
    for row in rows:
        print("{:<27}{:>15}{:>9.1%}{:>13.1%}{:>9.1f}".format(*row))
    figure, axes = plt.subplots(layout="constrained")
    axes.barh([row[0] for row in rows], [row[3] for row in rows])
    axes.set(xlabel="accuracy on digits on their side", ylim=(len(rows) - 0.5, -0.5))
    save_picture(figure, options.output / "orthogonal_finetuning.png")
    return rows


if __name__ == "__main__":
    main()
