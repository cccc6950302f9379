"""Copy ten symbols after a long silence.

The task of Arjovsky, Shah and Bengio (2016) on which the projUNN paper compares recurrent
networks: a sequence of T + 20 symbols starts with ten drawn from eight, goes on with blanks, and
shows a marker eleven places before its end. The ten symbols are to be repeated after the marker,
and blanks to be given before. A network without memory says blanks and then guesses, at a mean
cross-entropy of 10 log 8 / (T + 20).

    python examples/copy_memory.py                                  # T = 1000, k = 8
    python examples/copy_memory.py --T 1000 2000 --k 1 4 --networks orthogonal lstm
    python examples/copy_memory.py --T 100 --networks "orthogonal gru" gru      # gated ones
    python examples/copy_memory.py --smoke                          # seconds, for a test

Batches are drawn anew in every iteration, so that the training loss is the loss on unseen
sequences. Runs are saved in the output folder and continued by a second call.
"""

import math

import _needed  # noqa: F401
import numpy as np
import torch
from _memory_options import parse, parser
from _memory_runs import run
from _networks import networks
from _options import positive
from _tasks import MemoryTask, Row

SYMBOLS, LENGTH = 8, 10
BLANK, MARKER = SYMBOLS, SYMBOLS + 1
THRESHOLD = 0.002


def draw_batch(
    delay: int, size: int, seed: int, iteration: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one-hot inputs (delay + 20, size, 10) and the symbols to give (delay + 20, size)."""
    rng = np.random.default_rng([seed, iteration])
    symbols = torch.from_numpy(rng.integers(SYMBOLS, size=(LENGTH, size)))
    given = torch.full((delay + 2 * LENGTH, size), BLANK)
    wanted = given.clone()
    given[:LENGTH] = symbols
    given[-LENGTH - 1] = MARKER
    wanted[-LENGTH:] = symbols
    return torch.nn.functional.one_hot(given, SYMBOLS + 2).float(), wanted


def copying(delay: int, size: int) -> MemoryTask:
    return MemoryTask(
        name=f"T{delay}",
        title=f"Copy after T = {delay}",
        trivial=LENGTH * math.log(SYMBOLS) / (delay + 2 * LENGTH),
        threshold=THRESHOLD,
        length=delay,
        batch=lambda seed, iteration: draw_batch(delay, size, seed, iteration),
        loss=lambda logits, wanted: torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten()
        ),
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    options = parser(
        "copy_memory",
        __doc__.splitlines()[0],
        hidden=190,
        batch=128,
        iterations=1500,
        every=10,
    )
    options.add_argument("--T", nargs="+", type=positive, default=[1000], help="length of silence")
    options = parse(options, arguments, T=[10], hidden=16, batch=8, iterations=4, every=2)
    chosen = networks(options, SYMBOLS + 2, SYMBOLS + 1, last=False)
    return run([copying(delay, options.batch) for delay in options.T], chosen, options)


if __name__ == "__main__":
    main()
