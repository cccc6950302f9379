"""Count the steps that a recurrent network needs when its recurrent matrix takes rank-k steps.

The network of examples/permuted_digits.py, smaller, learns scikit-learn's digits pixel by pixel.
All methods train the other weights alike, by Adam at one learning rate; they differ in how the
recurrent matrix is stepped, each at the best of the same number of learning rates. A method's
figure is the median over seeds of the steps until the mean loss of an epoch is below a level.

    python benchmarks/learning_rnn.py                 # the table of the documentation
    python benchmarks/learning_rnn.py --smoke         # seconds, for a test
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import geoopt
import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.utils import parametrizations
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalRNN

mpl.use("Agg")
import matplotlib.pyplot as plt

LEVELS = (1.5, 1.0, 0.5)
OTHERS_LR = 3e-3
BATCH = 64
NEVER = float("inf")
# Adam's direction has entries of size one, or length one with geoopt.
ENTRIES, SCALAR = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.03, 0.1, 0.3)
# The matrix acts 64 times for a sequence.
RADIANS = (0.003, 0.01, 0.03, 0.1)

Optimizer = Callable[..., torch.optim.Optimizer]


class Method(NamedTuple):
    """How the recurrent matrix is held and stepped."""

    rnn: Callable[[int], torch.nn.RNN]
    optimizer: Optimizer
    grid: tuple[float, ...]


def low_rank(k: int | None, sketch: str = "tangent") -> Callable[[int], torch.nn.RNN]:
    return lambda hidden: OrthogonalRNN(
        1, hidden, nonlinearity="relu", batch_first=True, k=k, sketch=sketch
    )


def on_stiefel(hidden: int) -> torch.nn.RNN:
    start = low_rank(None)(hidden)
    rnn = torch.nn.RNN(1, hidden, nonlinearity="relu", batch_first=True)
    rnn.load_state_dict(start.state_dict())
    rnn.weight_hh_l0 = geoopt.ManifoldParameter(
        start.weight_hh_l0.detach().clone(), manifold=geoopt.EuclideanStiefel()
    )
    return rnn


def parametrized(hidden: int) -> torch.nn.RNN:
    start = low_rank(None)(hidden)
    rnn = torch.nn.RNN(1, hidden, nonlinearity="relu", batch_first=True)
    rnn.load_state_dict(start.state_dict())
    parametrizations.orthogonal(rnn, "weight_hh_l0", orthogonal_map="matrix_exp")
    rnn.weight_hh_l0 = start.weight_hh_l0.detach().clone()
    return rnn


elementwise = partial(ProjUNNRiemannianAdam, second_moment="elementwise")
in_radians = partial(ProjUNNRiemannianAdam, normalize="angle")

METHODS = {
    f"{sketch}, k = {k}": Method(low_rank(k, sketch), elementwise, ENTRIES)
    for sketch in ("tangent", "lsi", "column")
    for k in (1, 4, 16)
} | {
    "mean, k = 8": Method(low_rank(8), ProjUNNRiemannianAdam, ENTRIES),
    "mean, k = 1": Method(low_rank(1), ProjUNNRiemannianAdam, ENTRIES),
    "angle, k = 8": Method(low_rank(8), in_radians, RADIANS),
    "full rank": Method(low_rank(None), elementwise, ENTRIES),
    "geoopt Stiefel": Method(on_stiefel, geoopt.optim.RiemannianAdam, SCALAR),
    "torch parametrization": Method(parametrized, torch.optim.Adam, ENTRIES),
}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all digits as sequences (m, 64, 1) in one random order of pixels, and labels."""
    data = load_digits()
    order = np.random.default_rng(92916).permutation(64)
    pixels = (data.images.reshape(-1, 64)[:, order] / 16).astype("float32")
    return torch.from_numpy(pixels).unsqueeze(-1), torch.from_numpy(data.target)


def train(method: Method, lr: float, seed: int, options: argparse.Namespace) -> list[float]:
    """Return the mean loss of every epoch; infinite from where it is not finite."""
    torch.manual_seed(seed)
    pixels, labels = digits()
    model = torch.nn.ModuleDict(
        {"rnn": method.rnn(options.hidden), "readout": torch.nn.Linear(options.hidden, 10)}
    )
    recurrent = [p for name, p in model.named_parameters() if "weight_hh" in name]
    others = [p for name, p in model.named_parameters() if "weight_hh" not in name]
    optimizer = method.optimizer([{"params": others, "lr": OTHERS_LR}, {"params": recurrent}], lr)
    losses = []
    for _ in range(options.epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            states, _ = model["rnn"](pixels[batch])
            scores = model["readout"](states[:, -1])
            loss = torch.nn.functional.cross_entropy(scores, labels[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
        if not losses[-1] < NEVER:
            return losses[:-1] + [NEVER] * (options.epochs - len(losses) + 1)
    return losses


def steps_to(level: float, curves: list[list[float]]) -> float:
    """Return the median over seeds of the steps to a level; infinite for never."""
    steps_per_epoch = -(-len(load_digits().target) // BATCH)
    return statistics.median(
        next((steps_per_epoch * (i + 1) for i, loss in enumerate(curve) if loss < level), NEVER)
        for curve in curves
    )


def table(results: dict[str, dict[float, list[list[float]]]]) -> str:
    """Return a Markdown table of steps to each level, at the best learning rate of each."""
    lines = [f"| recurrent matrix | {' | '.join(f'loss {level} (lr)' for level in LEVELS)} |"]
    lines.append("|---" * (len(LEVELS) + 1) + "|")
    for name, by_lr in results.items():
        found = [min((steps_to(level, runs), lr) for lr, runs in by_lr.items()) for level in LEVELS]
        cells = ["–" if steps == NEVER else f"{steps:g} ({lr:g})" for steps, lr in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[float, list[list[float]]]], path: Path) -> None:
    """Draw the median loss of every method at the learning rate that ends lowest."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, by_lr in results.items():
        medians = [
            [statistics.median(values) for values in zip(*runs, strict=True)]
            for runs in by_lr.values()
        ]
        curve = min(medians, key=lambda values: values[-1])
        style = {"tangent": "-", "lsi": "--", "column": ":"}.get(name.split(",")[0], "-.")
        axes.plot(range(1, len(curve) + 1), curve, style, label=name)
    axes.set(xlabel="epoch", ylabel="training loss", title="Digits, one pixel at a time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[float, list[list[float]]]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.hidden, options.epochs, options.seeds, options.thin = 32, 1, 1, 4
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    todo = [(name, lr) for name, method in METHODS.items() for lr in method.grid[:: options.thin]]
    results: dict[str, dict[float, list[list[float]]]] = {}
    for name, lr in (progress := tqdm(todo, unit="run")):
        progress.set_postfix_str(f"{name}, lr {lr:g}")
        runs = [train(METHODS[name], lr, seed, options) for seed in range(options.seeds)]
        results.setdefault(name, {})[lr] = runs
        (options.output / "learning_rnn.json").write_text(json.dumps(results))
    text = table(results)
    (options.output / "learning_rnn.md").write_text(text + "\n")
    draw(results, options.output / "learning_rnn.png")
    print(text)
    return results


if __name__ == "__main__":
    main()
