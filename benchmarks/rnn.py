"""Time and memory of a training step of recurrent layers, side by side.

One step is forward, backward and optimizer step of one layer on a (T, batch, inputs) sequence.
All methods take turns in every round; a figure is the median over the rounds, a ratio the median
of the ratios to torch.nn.RNN with ReLU and torch.optim.Adam in the same round. Time is that of
one thread on its processor, the same as the clock's on an idle machine. Memory is the largest sum
of what torch has allocated during a step, beyond what was there before.

    python benchmarks/rnn.py                  # the table of the documentation, about 10 minutes
    python benchmarks/rnn.py --smoke          # seconds, for a test
    python benchmarks/rnn.py --transformed    # the loop that transforms run, about 2 minutes

geotorch and torch-eunn take part where they are installed (the extra "bench").
"""

import argparse
import importlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from memory import peak_bytes
from torch import Tensor
from torch.autograd.forward_ad import dual_level
from torch.nn.utils import parametrizations, parametrize
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN, UnitaryRNN

BASELINE = "torch.nn.RNN, relu"


@dataclass(frozen=True)
class Size:
    """What a layer is run on."""

    hidden: int
    length: int = 200
    batch: int = 64
    inputs: int = 32


@dataclass
class Result:
    """Medians over the rounds, in milliseconds; memory in MiB."""

    method: str
    hidden: int
    step: float
    optimizer: float
    ratio: float
    memory: float


class Loop(torch.nn.Module):
    """A loop over time in Python, its recurrent matrix kept orthogonal by a parametrization."""

    def __init__(
        self, size: Size, constrain: Callable[[torch.nn.Module, str], torch.nn.Module]
    ) -> None:
        super().__init__()
        self.read = torch.nn.Linear(size.inputs, size.hidden)
        self.turn = constrain(torch.nn.Linear(size.hidden, size.hidden, bias=False), "weight")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        projected = self.read(x)
        h = torch.zeros_like(projected[0])
        states = []
        with parametrize.cached():
            for u in projected:
                h = torch.relu(u + self.turn(h))
                states.append(h)
        return (torch.stack(states),)


def projunn(layer: torch.nn.Module) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return layer, ProjUNNRiemannianAdam(layer.parameters(), lr=1e-3)


def adam(layer: torch.nn.Module) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return layer, torch.optim.Adam(layer.parameters(), lr=1e-3)


def of_package(name: str, make: Callable, size: Size) -> tuple:
    """Build a method of another package, or say that it is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adam(make(importlib.import_module(name), size))


METHODS: dict[str, Callable[[Size], tuple[torch.nn.Module, torch.optim.Optimizer]]] = {
    BASELINE: lambda s: adam(torch.nn.RNN(s.inputs, s.hidden, nonlinearity="relu")),
    "OrthogonalRNN, relu, k = 1": lambda s: projunn(
        OrthogonalRNN(s.inputs, s.hidden, nonlinearity="relu", k=1)
    ),
    "OrthogonalRNN, modrelu, k = 1": lambda s: projunn(OrthogonalRNN(s.inputs, s.hidden, k=1)),
    "UnitaryRNN, modrelu, k = 1": lambda s: projunn(UnitaryRNN(s.inputs, s.hidden, k=1)),
    "loop, parametrizations.orthogonal": lambda s: adam(Loop(s, parametrizations.orthogonal)),
    "loop, geotorch.orthogonal": lambda s: of_package(
        "geotorch", lambda package, s: Loop(s, package.orthogonal), s
    ),
    "torch-eunn, EURNN, capacity 2": lambda s: of_package(
        "torch_eunn", lambda package, s: package.EURNN(s.inputs, s.hidden), s
    ),
    "torch.nn.GRU": lambda s: adam(torch.nn.GRU(s.inputs, s.hidden)),
    "OrthogonalGRU, tanh, k = 1": lambda s: projunn(
        OrthogonalGRU(s.inputs, s.hidden, nonlinearity="tanh", k=1)
    ),
    "OrthogonalGRU, modrelu, k = 1": lambda s: projunn(OrthogonalGRU(s.inputs, s.hidden, k=1)),
    "torch.nn.LSTM": lambda s: adam(torch.nn.LSTM(s.inputs, s.hidden)),
}


class Runner:
    """A method ready to take steps."""

    def __init__(self, name: str, size: Size) -> None:
        torch.manual_seed(0)
        self.layer, self.optimizer = METHODS[name](size)
        self.x = torch.randn(size.length, size.batch, size.inputs)
        self.gradient: Tensor | None = None

    def step(self) -> tuple[float, float]:
        """Return the seconds of the whole step and of the optimizer's part."""
        start = time.process_time()
        self.optimizer.zero_grad()
        states = self.layer(self.x)[0]
        if self.gradient is None:
            self.gradient = torch.randn_like(states) / states.numel()
            start = time.process_time()
        states.backward(self.gradient)
        half = time.process_time()
        self.optimizer.step()
        end = time.process_time()
        return end - start, end - half


def measure_times(names: list[str], size: Size, rounds: int) -> Iterator[Result]:
    runners = {name: Runner(name, size) for name in names}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in tqdm(range(rounds + 2), desc=f"H = {size.hidden}, time", unit="round"):
        for name, runner in runners.items():
            taken = runner.step()
            if number >= 2:
                times[name].append(taken)
    for name, taken in times.items():
        ratios = [own[0] / base[0] for own, base in zip(taken, times[BASELINE], strict=True)]
        step, optimizer = (1e3 * statistics.median(column) for column in zip(*taken, strict=True))
        yield Result(name, size.hidden, step, optimizer, statistics.median(ratios), float("nan"))


def measure_memory(name: str, size: Size) -> float:
    """Return the peak of what a step allocates, in MiB."""
    runner = Runner(name, size)
    runner.step()  # optimizers make their state
    return peak_bytes(runner.step) / 2**20


def compare_loop(layer: torch.nn.Module, x: Tensor, rounds: int) -> tuple[float, float]:
    """Return the ratios of the loop of torch's operations to the layer's own path.

    Of the time of forward and backward pass, the median over the rounds, and of the memory that
    the forward pass keeps for the backward pass. An open level of forward mode asks for the loop,
    as torch.func does; there are no tangents.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    kept: dict[bool, int] = {}
    for number in range(rounds + 2):
        for loop in times:
            sizes: dict[int, int] = {}

            def keep(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
            with dual_level() if loop else nullcontext():
                with hooks if number == 0 else nullcontext():
                    start = time.process_time()
                    states = layer(x)[0]
                states.backward(torch.ones_like(states))
            if number == 0:
                kept[loop] = sum(sizes.values())
            elif number > 1:
                times[loop].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
    return statistics.median(ratios), kept[True] / kept[False]


def loop_table(options: argparse.Namespace) -> str:
    hidden, inputs = options.hidden, Size.inputs
    head = "| layer |" + "".join(f" H = {h}: time | kept |" for h in hidden)
    lines = [head, "|---|" + "---|---|" * len(hidden)]
    layers = (OrthogonalRNN, UnitaryRNN, OrthogonalGRU)
    kinds = [(k, n) for k in layers for n in ("modrelu", "relu", "tanh")]
    for kind, nonlinearity in tqdm(kinds, unit="layer"):
        cells = ""
        for h in hidden:
            torch.manual_seed(0)
            layer = kind(inputs, h, nonlinearity=nonlinearity)
            x = torch.randn(options.length, options.batch, inputs, dtype=layer.weight_ih_l0.dtype)
            time_ratio, memory_ratio = compare_loop(layer, x, options.rounds)
            cells += f" {time_ratio:.2f} | {memory_ratio:.2f} |"
        lines.append(f"| {kind.__name__}, {nonlinearity} |{cells}")
    said = f"T = {options.length}, batch {options.batch}, {inputs} inputs, CPU."
    return "\n".join([*lines, "", said]) + "\n"


def available() -> tuple[list[str], list[str]]:
    """Part the methods into those that can be built here and those whose package is absent."""
    known, absent = [], []
    for name in METHODS:
        try:
            METHODS[name](Size(4, 2, 1, 2))
            known.append(name)
        except ModuleNotFoundError:
            absent.append(name)
    return known, absent


def table(results: list[Result], absent: list[str], options: argparse.Namespace) -> str:
    sizes = sorted({result.hidden for result in results})
    head = "| method |" + "".join(f" H = {h}: ms (optimizer) | ratio | MiB |" for h in sizes)
    lines = [head, "|---|" + "---|---|---|" * len(sizes)]
    for name in dict.fromkeys(result.method for result in results):
        cells = [
            f" {r.step:.1f} ({r.optimizer:.1f}) | {r.ratio:.2f} | {r.memory:.0f} |"
            for h in sizes
            for r in results
            if (r.method, r.hidden) == (name, h)
        ]
        lines.append(f"| {name} |" + "".join(cells))
    lines += ["", f"T = {options.length}, batch {options.batch}, torch {torch.__version__}, CPU."]
    if absent:
        lines.append(f"Not installed: {', '.join(absent)}.")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="all by default")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for a test")
    parser.add_argument("--transformed", action="store_true", help="the loop of transforms only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.smoke:
        options.hidden, options.length, options.batch, options.rounds = [16], 5, 4, 2
    options.output.mkdir(parents=True, exist_ok=True)
    if options.transformed:
        text = loop_table(options)
        (options.output / "rnn_transformed.md").write_text(text)
        print(text)
        return []
    known, absent = available()
    if options.methods:
        known = [name for name in known if name in {BASELINE, *options.methods}]
    results = []
    for hidden in options.hidden:
        size = Size(hidden, options.length, options.batch)
        measured = list(measure_times(known, size, options.rounds))
        for result in tqdm(measured, desc=f"H = {hidden}, memory", unit="method"):
            result.memory = measure_memory(result.method, size)
        results += measured
    text = table(results, absent, options)
    (options.output / "rnn.md").write_text(text)
    (options.output / "rnn.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    print(text)
    return results


if __name__ == "__main__":
    main()
