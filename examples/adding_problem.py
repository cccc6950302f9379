"""Add two marked numbers of a long sequence.

The task of Hochreiter and Schmidhuber (1997) with the sizes of the projUNN paper: of T uniform
random numbers, two are marked, one in each half, and their sum is to be given after the last
one. A network without memory says 1, at a mean squared error of 1/6.

    python examples/adding_problem.py                               # T = 200, k = 8
    python examples/adding_problem.py --T 200 750 --k 1 4 --networks orthogonal lstm
    python examples/adding_problem.py --networks "orthogonal gru" gru   # gated ones
    python examples/adding_problem.py --warm-up 0                   # long sequences at once
    python examples/adding_problem.py --smoke                       # seconds, for a test

Batches are drawn anew in every iteration, so that the training loss is the loss on unseen
sequences. The first sequences have 50 numbers, and their length doubles until it is T: on long ones
alone the loss of one layer without gates stays at 1/6 for thousands of iterations. Runs are saved
in the output folder and continued by a second call.
"""

import itertools

import _needed  # noqa: F401
import numpy as np
import torch
from _memory_options import parse, parser
from _memory_runs import run
from _networks import networks
from _options import at_least, not_negative
from _tasks import MemoryTask, Row, cosine

TRIVIAL = 1 / 6
THRESHOLD = 0.01
SHORTEST = 50


def draw_batch(
    length: int, size: int, seed: int, iteration: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers beside their marks (length, size, 2), and sums (size, 1)."""
    rng = np.random.default_rng([seed, iteration])
    numbers = rng.random((length, size), dtype="float32")
    marks = np.zeros_like(numbers)
    half, each = length // 2, np.arange(size)
    marks[rng.integers(half, size=size), each] = 1
    marks[rng.integers(half, length, size=size), each] = 1
    sums = (numbers * marks).sum(0)
    return torch.from_numpy(np.stack([numbers, marks], -1)), torch.from_numpy(sums).unsqueeze(1)


def length_at(iteration: int, last: int, warm_up: int) -> int:
    """Return the length of an iteration's sequences: doubled after every ``warm_up`` of them."""
    doublings = (iteration - 1) // warm_up if warm_up else last
    # A bit length bounds the power, which nobody needs in full.
    return min(last, SHORTEST << min(doublings, last.bit_length()))


def adding(last: int, size: int, iterations: int, warm_up: int) -> MemoryTask:
    first = next(i for i in itertools.count(1) if length_at(i, last, warm_up) == last)

    def decay(done: int) -> float:
        # What turns a state by too much is the rate times the length.
        rate = min(1, 200 / length_at(done + 1, last, warm_up))
        return rate * cosine(max(0, done + 1 - first), iterations + 1 - first)

    return MemoryTask(
        name=f"T{last}",
        title=f"Add two of T = {last}",
        trivial=TRIVIAL,
        threshold=THRESHOLD,
        length=last,
        length_at=lambda iteration: length_at(iteration, last, warm_up),
        batch=lambda seed, iteration: draw_batch(
            length_at(iteration, last, warm_up), size, seed, iteration
        ),
        loss=torch.nn.functional.mse_loss,
        decay=decay,
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    options_parser = parser(
        "adding_problem",
        __doc__.splitlines()[0],
        hidden=170,
        batch=50,
        iterations=4000,
        every=50,
        # Small angles and quick offsets: near-linear states cannot tell marked numbers apart, and
        # the loss stays at the trivial one until the offsets have grown.
        init="cayley",
        lr=1e-2,
        recurrent_lr=1e-3,
        momentum=0.9,
        smoothing=0.99,
        clip=1.0,
    )
    halves = at_least(2, "one number to a half")
    options_parser.add_argument("--T", nargs="+", type=halves, default=[200], help="length")
    options_parser.add_argument(
        "--warm-up",
        type=not_negative,
        default=500,
        help="iterations until the length doubles; 0: no growth",
    )
    smoke = {"T": [100], "hidden": 16, "batch": 8, "iterations": 4, "every": 2, "warm_up": 2}
    options = parse(options_parser, arguments, **smoke)
    # The learning rates decay towards the last iteration, so that a longer run is another run.
    options.fixed += ["iterations", "warm_up"]
    for last in options.T:
        if options.iterations and length_at(options.iterations, last, options.warm_up) < last:
            options_parser.error(
                f"--iterations {options.iterations} ends before sequences have {last} numbers; "
                "raise it, or lower --warm-up"
            )
    tasks = [adding(last, options.batch, options.iterations, options.warm_up) for last in options.T]
    return run(tasks, networks(options, 2, 1, last=True), options)


if __name__ == "__main__":
    main()
