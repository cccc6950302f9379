r"""Count the optimizer seconds to a target loss: rank-k steps beside full-rank peers.

A step of rank k is cheaper than a full one and does less, so steps and seconds of a step say
little each; this gives their product. Every method runs every problem at every learning rate of
one grid, until the population loss is below 1 % of its initial value. Its figure is the number
of steps, at the rate that needs fewest, times the median processor time of a step. A step is what
comes on top of the gradient with respect to the matrix: ``optimizer.step()``, and for a
parametrization its forward and backward pass too. The loss is looked at outside of it. One thread.

    python benchmarks/time_to_loss.py                                # mini-batches, 512 and 1024
    python benchmarks/time_to_loss.py --sizes 512 --problems "regression, batch n" \
        "Procrustes, consistent" "Procrustes, large residual" --every 2   # full-rank gradients
    python benchmarks/time_to_loss.py --smoke                        # seconds, for a test

Every run leaves a file in the output folder, and a second call goes on with what is missing; to
measure a method again, or to another target, delete its files. POGO takes part if pogo-torch is
installed. Methods in radians have numbers of planned steps where others have learning rates.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from time_to_loss_report import draw, table
from time_to_loss_run import OVER_BUDGET, REACHED, TARGET, Run, run
from time_to_loss_tasks import HAS_POGO, MINI_BATCH, PROBLEMS, RATES, Task, methods, rates
from tqdm import tqdm


def from_the_middle(rates: Sequence[float]) -> list[float]:
    """Sort so that the likeliest come first, which bounds the steps of the others."""
    middle = statistics.median(math.log(lr) for lr in rates)
    return sorted(rates, key=lambda lr: abs(math.log(lr) - middle))


def record(options: argparse.Namespace) -> None:
    """Run what the folder does not hold yet."""
    options.output.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(problem, n, options.batch, options.seed, method, lr)
        for problem in options.problems
        for n in options.sizes
        for method in methods(n)
        if any(text in method.name for text in options.methods)
        for lr in from_the_middle(rates(method, options.rates))
    ]
    for task in tqdm(tasks, unit="run"):
        path = task.path(options.output)
        if path.exists():
            known = Run(**json.loads(path.read_text()))
            if known.outcome != OVER_BUDGET or known.budget >= options.budget:
                continue
        # Steps of one method cost the same at any rate: the fewest are the fastest.
        rivals = [
            one.steps
            for one in load(options.output)
            if (one.problem, one.n, one.method, one.seed, one.outcome)
            == (task.label, task.n, task.method.name, task.seed, REACHED)
        ]
        name = f"{task.label}, n = {task.n}, {task.method.name}, lr {task.lr:g}"
        with tqdm(desc=name, unit="step", leave=False) as progress:
            most = min(rivals, default=math.inf)
            result = run(task, options.every, most, options.budget, progress, options.target)
        path.write_text(json.dumps(asdict(result)) + "\n")


def load(folder: Path) -> list[Run]:
    return [Run(**json.loads(path.read_text())) for path in sorted(folder.glob("*_seed*.json"))]


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=[MINI_BATCH])
    parser.add_argument("--batch", type=int, default=32, help="samples of a fresh mini-batch")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of methods' names")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--every", type=int, default=10, help="steps from loss to loss")
    parser.add_argument("--budget", type=float, default=200, help="optimizer seconds of a run")
    parser.add_argument("--target", type=float, default=TARGET, help="loss, relative to the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/time_to_loss"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if min(options.budget, options.every, *options.rates) <= 0:
        parser.error("`--budget`, `--every` and `--rates` must be positive.")
    if options.smoke:
        options.sizes, options.batch, options.budget = [16], 4, min(options.budget, 10)
    torch.set_num_threads(1)
    print("Learning rates:", *options.rates)
    if not HAS_POGO:
        print("pogo-torch is not installed: no POGO.")
    record(options)
    runs = [one for one in load(options.output) if one.seed == options.seed]
    text = table(runs)
    (options.output / "time_to_loss.md").write_text(text + "\n")
    draw(runs, options.output / "time_to_loss.png")
    print(text)
    return runs


if __name__ == "__main__":
    main()
