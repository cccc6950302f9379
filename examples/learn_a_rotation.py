"""Learn a large rotation from examples, in the same time by three methods.

Each example is a vector x and Qx, Q orthogonal and hidden. Wx learns Q from batches of 32:

- this package: OrthogonalLinear and ProjUNNRiemannianSGD, which turns W in k = 8 planes a step;
- geoopt: a parameter on EuclideanStiefel, by geoopt's RiemannianSGD;
- torch: torch.nn.utils.parametrizations.orthogonal, Cayley's, by torch's SGD.

All have momentum 0.9 and a rate that falls to zero as the time runs out. Those of geoopt and torch
are the best of four, at the default size.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import _needed  # noqa: F401
import geoopt
import torch
from _options import above_zero, at_least, not_negative, output_folder
from _pictures import plt, save_picture
from _tables import explain
from torch import Tensor
from torch.nn.utils import parametrizations
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD, param_groups
from geoopt_projunn.nn import OrthogonalLinear

BATCH = 32
Built = tuple[torch.nn.Module, torch.optim.Optimizer]


def ours(start: Tensor) -> Built:
    layer = OrthogonalLinear(*start.shape, bias=False, k=min(8, len(start) // 2))
    layer.load_state_dict({"weight": start})
    groups = param_groups(layer, lr=0.1, steps=1600)  # about as many as there will be
    return layer, ProjUNNRiemannianSGD(groups, momentum=0.9, nesterov=True)


def of_geoopt(start: Tensor) -> Built:
    layer = torch.nn.Linear(*start.shape, bias=False)
    layer.weight = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.EuclideanStiefel())
    return layer, geoopt.optim.RiemannianSGD(layer.parameters(), lr=RATES["geoopt"], momentum=0.9)


def of_torch(start: Tensor) -> Built:
    layer = torch.nn.Linear(*start.shape, bias=False)
    layer.weight.data.copy_(start)
    parametrizations.orthogonal(layer, orthogonal_map="cayley")
    return layer, torch.optim.SGD(layer.parameters(), lr=RATES["torch"], momentum=0.9)


RATES = {"geoopt": 0.006, "torch": 0.003}
METHODS: dict[str, Callable[[Tensor], Built]] = {
    "this package, k = 8": ours,
    "geoopt, EuclideanStiefel": of_geoopt,
    "torch, orthogonal (cayley)": of_torch,
}


class Race(NamedTuple):
    steps: int
    seconds: list[float]
    left: list[float]
    """The share of the loss that is left, at these seconds."""
    error: float


def matrices(n: int) -> tuple[Tensor, Tensor]:
    """Draw a matrix to start from, and one to learn."""
    start, target = (LowRankUnitary().random(n, n).as_subclass(Tensor) for _ in range(2))
    if torch.linalg.slogdet(start).sign != torch.linalg.slogdet(target).sign:
        target[0] *= -1  # no rotation leads from one sign of the determinant to the other
    return start, target


def race(name: str, built: Built, target: Tensor, seconds: float) -> Race:
    """Train for some seconds, looking at the loss twenty times outside of them."""
    layer, optimizer = built
    rates = [group["lr"] for group in optimizer.param_groups]
    first = float((layer.weight.detach() - target).square().sum())
    steps, spent, at, left = 0, 0.0, [0.0], [1.0]
    shown = "{desc}: {bar} {n:.0f} of {total:.0f} s{postfix}"
    with tqdm(total=seconds, desc=f"{name:<27}", bar_format=shown) as bar:
        while spent < seconds:
            # Time of the processor, which other work on the machine does not stretch.
            begin = time.process_time()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - spent / seconds)
            x = torch.randn(BATCH, len(target))
            optimizer.zero_grad()
            (layer(x) - x @ target.mT).square().sum(1).mean().backward()
            optimizer.step()
            steps, spent = steps + 1, spent + time.process_time() - begin
            if spent - at[-1] > seconds / 100 or spent >= seconds:
                at.append(spent)
                left.append(float((layer.weight.detach() - target).square().sum()) / first)
                bar.update(min(spent, seconds) - bar.n)
                bar.set_postfix_str(f"{left[-1]:.2g} of the loss left")
    w = layer.weight.detach().double()
    return Race(steps, at, left, float((w.mT @ w - torch.eye(len(w))).norm()))


def main(arguments: list[str] | None = None) -> dict[str, Race]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", type=at_least(2, "for a plane to turn"), default=1024, help="of the matrix")
    add("--seconds", type=above_zero, default=25.0, help="of processor time for each method")
    add("--seed", type=not_negative, default=0)
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.size, options.seconds = 16, 0.2
    n, seconds = options.size, options.seconds
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # so that all have the same of the machine
    start, target = matrices(n)
    print(
        f"Three methods learn a rotation of {n} dimensions, each {seconds:g} seconds on one core.\n"
    )
    races = {name: race(name, make(start), target, seconds) for name, make in METHODS.items()}
    print(f"\n{'method':<28}{'steps':>8}{'ms a step':>11}{'loss left':>11}{'‖WᵀW − I‖':>12}")
    for name, one in races.items():
        ms = 1000 * one.seconds[-1] / one.steps
        print(f"{name:<28}{one.steps:>8}{ms:>11.1f}{one.left[-1]:>11.1e}{one.error:>12.0e}")
    explain(
        **{
            "steps": f"taken in this time, each from {BATCH} new examples",
            "ms a step": "milliseconds of forward, backward and the optimizer's step",
            "loss left": "the loss at the end over that at the start; 1 is nothing learned",
            "‖WᵀW − I‖": "how far W is from orthogonal; 1e-4 and below is rounding",
        }
    )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, one in races.items():
        axes.semilogy(one.seconds, one.left, label=name)
    axes.set(xlabel="seconds", ylabel="loss left", title=f"A rotation of {n} dimensions")
    axes.grid(alpha=0.3)
    axes.legend()
    save_picture(figure, options.output / "learn_a_rotation.png")
    return races


if __name__ == "__main__":
    main()
