"""Adapt a small transformer to a shifted task by rotations of its frozen weights.

A transformer learns to read digits, eight rows of pixels to an image, and then has to read them
lying on their side, from a few labelled ones. Orthogonal fine-tuning keeps a weight W and learns an
orthogonal R for WR: whole, or blocks along its diagonal, which are one batch. One rate in radians
serves every size. Afterwards R is merged, and the network is as fast as before. Beside it stand
LoRA, which adds a matrix of rank 4, training all weights, and the orthogonal fine-tuning of PEFT,
where that is installed. The error is ‖W'W'ᵀ − WWᵀ‖ / ‖WWᵀ‖, of the worst W: 0 for a rotation.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _needed  # noqa: F401
import geoopt
import torch
from _options import not_negative, output_folder, positive
from _pictures import plt, save_picture
from _reader import MATRICES, Reader, digits, train
from torch import Tensor
from torch.nn.utils import parametrize

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD


class Rotated(torch.nn.Module):
    def __init__(self, weight: Tensor, block: int | None) -> None:
        super().__init__()
        size = block or weight.shape[1]
        manifold = LowRankUnitary(k=min(8, size // 2))
        start = torch.eye(size, dtype=weight.dtype).repeat(weight.shape[1] // size, 1, 1)
        self.blocks = geoopt.ManifoldParameter(start, manifold=manifold)

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


def trained(model: Reader) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def adapt(model: Reader, make: Callable[[Tensor], torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Freeze a model, make its matrices functions of themselves, and return what is to train."""
    model.requires_grad_(False)
    for layer in model.matrices():
        parametrize.register_parametrization(layer, "weight", make(layer.weight))
    return trained(model)


def merge(model: Reader) -> None:
    for layer in model.matrices():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
        elif hasattr(layer, "merge"):  # PEFT's
            layer.merge()


def rotations(model: Reader, block: int | None) -> torch.optim.Optimizer:
    rotated = adapt(model, partial(Rotated, block=block))
    return ProjUNNRiemannianSGD(rotated, 0.15, 0.9, nesterov=True, normalize="angle")


def of_peft(model: Reader, block: int, lr: float, exact: bool) -> torch.optim.Optimizer:
    options = {"oft_block_size": block, "use_cayley_neumann": not exact}
    config = peft.OFTConfig(r=0, target_modules=MATRICES, **options)
    peft.inject_adapter_in_model(config, model)
    return torch.optim.Adam(trained(model), lr)


METHODS: dict[str, Callable[[Reader], torch.optim.Optimizer]] = {  # at the best of a few rates
    "rotations, whole": partial(rotations, block=None),
    "rotations, blocks of 32": partial(rotations, block=32),
    "rotations, blocks of 8": partial(rotations, block=8),
    "LoRA, rank 4": lambda model: torch.optim.Adam(adapt(model, LowRank), 0.03),
    "all weights": lambda model: torch.optim.Adam(model.parameters(), lr=0.003),
}
try:
    import peft
except ImportError:
    print("PEFT is not installed, so its rows are left out: pip install peft")
else:
    for block, lr in ((32, 0.01), (8, 0.03)):
        for kind, exact in (("", False), (", exact", True)):
            name = f"PEFT's OFT{kind}, blocks of {block}"
            METHODS[name] = partial(of_peft, block=block, lr=lr, exact=exact)


def main(arguments: list[str] | None = None) -> list[tuple]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=positive, default=200)
    add("--images", type=positive, default=200, help="labelled ones of the new task")
    add("--seed", type=not_negative, default=0)
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    steps = 5 if options.smoke else options.steps
    torch.manual_seed(options.seed)
    x, y, x_test, y_test = digits()
    model = Reader()
    train("upright", model, torch.optim.Adam(model.parameters(), 0.003), x, y, 2 * steps)

    def accuracy(model: Reader, turns: int) -> float:
        return float((model(x_test.rot90(turns, (1, 2))).argmax(1) == y_test).float().mean())

    @torch.no_grad()
    def error(adapted: Reader) -> float:
        pairs = zip(model.matrices(), adapted.matrices(), strict=True)
        grams = ((w.weight @ w.weight.mT, v.weight @ v.weight.mT) for w, v in pairs)
        return max(float((now - before).norm() / before.norm()) for before, now in grams)

    rows = [("not adapted", 0, accuracy(model, 0), accuracy(model, 1), 0.0, 0.0)]
    side = x[: options.images].rot90(1, (1, 2)), y[: options.images]
    for name, make in METHODS.items():
        torch.manual_seed(options.seed)
        adapted = copy.deepcopy(model)
        optimizer = make(adapted)
        count = sum(p.numel() for p in trained(adapted))
        seconds = train(name, adapted, optimizer, *side, steps)
        merge(adapted)
        numbers = accuracy(adapted, 0), accuracy(adapted, 1), error(adapted), seconds
        rows.append((name, count, *numbers))
    print("\nAccuracy on the old and on the new task; error: 0 if weights were only rotated")
    print(f"{'method':<31}trained numbers  upright  on its side    error  seconds")
    for row in rows:
        print("{:<31}{:>15}{:>9.1%}{:>13.1%}{:>9.0e}{:>9.1f}".format(*row))
    figure, axes = plt.subplots(layout="constrained")
    axes.barh([row[0] for row in rows], [row[3] for row in rows])
    axes.set(xlabel="accuracy on digits on their side", ylim=(len(rows) - 0.5, -0.5))
    save_picture(figure, options.output / "orthogonal_finetuning.png")
    return rows


if __name__ == "__main__":
    main()
