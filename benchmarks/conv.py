"""Time a training step of orthogonal convolutions beside torch's circular convolution.

One process measures all layers in turn, round after round, so that they share the machine's
moods; the figures are medians. A step is forward, backward and the optimizer's update (SGD).

    python benchmarks/conv.py                 # C = 64, 32 x 32 and C = 128, 16 x 16, batch 16
    python benchmarks/conv.py --smoke         # seconds, for a test

orthogonium's AOC layer takes part if that package is installed. The Cayley layer (Trockman and
Kolter, arXiv:2104.07167) is the few lines of its formula.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.nn import BlockOrthogonalConv2d, OrthogonalConv2d

SHAPES = ((64, 32, 16), (128, 16, 16))
PLAIN = "torch.nn.Conv2d, circular, 3 x 3"


@dataclass
class Entry:
    """A layer, its optimizer and its times in milliseconds."""

    name: str
    layer: torch.nn.Module
    optimizer: torch.optim.Optimizer
    gradient: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


class CayleyConv(torch.nn.Module):
    """Make all frequencies of a full-width kernel unitary in every forward pass."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.kernel = torch.nn.Parameter(torch.randn(size, size, channels, channels) / channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.fft.rfft2(self.kernel, dim=(0, 1)).flatten(0, 1)
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        skew = a - a.mH
        w = torch.linalg.solve(eye + skew, eye - skew)
        signal = torch.fft.rfft2(x).permute(2, 3, 1, 0)
        y = w @ signal.flatten(0, 1)
        return torch.fft.irfft2(y.view(signal.shape).permute(3, 2, 0, 1), s=(self.size, self.size))


def entries(channels: int, size: int) -> Iterator[Entry]:
    def plain(name: str, layer: torch.nn.Module) -> Entry:
        return Entry(name, layer, torch.optim.SGD(layer.parameters(), lr=1e-4))

    yield plain(PLAIN, torch.nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular"))
    kinds = {
        "BlockOrthogonalConv2d, 3 x 3": lambda k: BlockOrthogonalConv2d(channels, channels, 3, k=k),
        "OrthogonalConv2d": lambda k: OrthogonalConv2d(channels, channels, size, init="haar", k=k),
    }
    optimizers = {"SGD": ProjUNNRiemannianSGD, "Adam": ProjUNNRiemannianAdam}
    for (name, make), k in itertools.product(kinds.items(), (1, 4)):
        for short, optimizer in optimizers.items():
            layer = make(k)
            yield Entry(f"{name}, k = {k}, {short}", layer, optimizer(layer.parameters(), lr=1e-4))
    yield plain("Cayley layer", CayleyConv(channels, size))
    try:
        from orthogonium.layers import AdaptiveOrthoConv2d
    except ImportError:
        print("orthogonium is not installed: no AOC layer.")
    else:
        yield plain(
            "orthogonium AOC, 3 x 3",
            AdaptiveOrthoConv2d(channels, channels, 3, padding=1, padding_mode="circular"),
        )


def timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begun)


def measure(channels: int, size: int, batch: int, rounds: int) -> list[Entry]:
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    grad = torch.randn(batch, channels, size, size)
    measured = list(entries(channels, size))
    for index in tqdm(range(rounds + 2), unit="round"):
        for entry in measured:
            entry.optimizer.zero_grad()
            x.grad = None
            gradient = timed(lambda layer=entry.layer: layer(x).backward(grad))
            update = timed(entry.optimizer.step)
            if index >= 2:
                entry.gradient.append(gradient)
                entry.update.append(update)
    return measured


def table(measured: list[Entry]) -> str:
    def steps(entry: Entry) -> list[float]:
        return [a + b for a, b in zip(entry.gradient, entry.update, strict=True)]

    reference = steps(next(entry for entry in measured if entry.name == PLAIN))
    lines = ["| layer | forward + backward, ms | update, ms | step / plain |", "|---|---|---|---|"]
    for entry in measured:
        # Within each round: what slows the machine down slows both.
        ratio = statistics.median(a / b for a, b in zip(steps(entry), reference, strict=True))
        gradient, update = statistics.median(entry.gradient), statistics.median(entry.update)
        lines.append(f"| {entry.name} | {gradient:.1f} | {update:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    shapes = ((8, 8, 2),) if options.smoke else SHAPES
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables = []
    for channels, size, batch in shapes:
        measured = measure(channels, size, batch, 2 if options.smoke else options.rounds)
        print(f"\nC = {channels}, {size} x {size}, batch {batch}, float32, one thread\n")
        tables.append(table(measured))
        print(tables[-1])
    return tables


if __name__ == "__main__":
    main()
