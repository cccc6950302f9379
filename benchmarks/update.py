"""Time one optimizer update of a square matrix: ours, what one might pick instead, and the floor.

All methods get the same point and gradient and take turns in one process, round after round, so
that they share the machine's moods; a turn is as many warm updates as fit in 10 ms. A figure is the
median over the rounds, a ratio the median of the ratios within the rounds; the time of one thread
is that on its processor. A parametrization pays for its forward and backward pass and for torch's
step. The floor of a step is the time in which a copy, in the same round, moves the bytes that the
step has to move: our methods say how often they pass over a matrix.

    python benchmarks/update.py --threads 1,2       # as the tables of the documentation
    python benchmarks/update.py --sizes 1024,8192   # growth with n as well
    python benchmarks/update.py --cold              # as after a model that fills the caches
    python benchmarks/update.py --methods ours Euclidean          # some of them
    python benchmarks/update.py --device cuda
    python benchmarks/update.py --smoke                           # seconds, for a test

A method leaves a size when it has had its seconds (--budget), and is left out of one where it would
not get through three updates. pogo-torch and cdopt take part where they are installed.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from timing import empty_caches, timed
from update_extras import many_small, peaks
from update_methods import COPY, OURS, RANKS, Method, Update, methods
from update_peers import peers
from update_problem import Problem, draw
from update_report import Report, Result, machine

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # this benchmark runs where nothing but the package is installed

    def tqdm(items: Iterable, **_: str) -> Iterable:
        return items


TURN = 10e-3
"""Seconds of a turn of fast methods."""
MOST_STEPS = 20
COLD = 0.1
"""Seconds of an update from which on it does not matter what is in the caches."""
ALIVE_BYTES = 8 * 2**30
"""Of the methods that take turns with each other, at about six matrices each."""


def measure(
    updates: dict[str, Update], rounds: int, budget: float, label: str, cold: bool = False
) -> dict[str, list[float]]:
    """Return the seconds of an update in each round, of a method out of budget in fewer.

    Each one with empty caches if ``cold``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    last, steps, spent = {}, {}, {}
    for name, update in tqdm(updates.items(), desc=f"{label}, warm-up", unit="method"):
        first = timed(update.step)
        # The first update makes state, and its time says nothing of the second.
        again = first < budget / 3
        last[name] = timed(update.step) if again else first
        steps[name] = 1 if cold else max(1, min(MOST_STEPS, int(TURN / last[name])))
        spent[name] = first + again * last[name]
    for _ in tqdm(range(rounds), desc=label, unit="round"):
        for name, update in updates.items():
            if seconds[name] and spent[name] > budget:
                continue
            if cold:
                empty_caches()
            elif last[name] < COLD:
                update.step()  # fetches what the others have driven out
            last[name] = timed(update.step, steps[name])
            seconds[name].append(last[name])
            spent[name] += last[name] * steps[name]
    return seconds


def crews(chosen: list[Method], problem: Problem) -> Iterator[list[Method]]:
    """Part the methods into those that fit into memory together, each time after the copy."""
    (copy,) = (method for method in chosen if method.name == COPY)
    others = [method for method in chosen if method is not copy]
    count = max(1, ALIVE_BYTES // (6 * problem.bytes_of_pass))
    for start in range(0, len(others), count):
        yield [copy, *others[start : start + count]]


def suited(chosen: list[Method], options: argparse.Namespace) -> list[Method]:
    """Return the methods that are installed and know the dtype and batches."""
    tiny = draw(2 * max(RANKS), options.shape, options.dtype, options.device)
    kept = []
    for method in chosen:
        if options.dtype.is_complex and not method.complex:
            print(f"{method.name}: left out, it has no complex matrices.")
        elif options.shape and not method.batched:
            print(f"{method.name}: left out, it has no batches.")
        else:
            try:
                method.build(tiny)
            except ModuleNotFoundError:
                print(f"{method.name}: left out; `pip install {method.package}` adds it.")
            else:
                kept.append(method)
    return kept


def run_size(
    n: int,
    chosen: list[Method],
    earlier: list[Result],
    options: argparse.Namespace,
    p: int | None = None,
) -> Iterator[Result]:
    """Measure the methods on n × p matrices, but for those that would be too slow.

    ``earlier`` are results of smaller sizes with as many threads.
    """
    problem = draw(n, options.shape, options.dtype, options.device, p)
    due = []
    for method in chosen:
        last = next((r for r in reversed(earlier) if r.method == method.name), None)
        expected = last.ms / 1e3 * (n / last.n) ** method.order if last else 0.0
        if 3 * expected > options.budget and method.name != COPY:
            print(f"{method.name}: left out at n = {n}, an update would take {expected:.1f} s.")
        else:
            due.append(method)
    threads = torch.get_num_threads()
    for index, crew in enumerate(crews(due, problem)):
        updates = {method.name: method.build(problem) for method in crew}
        label = f"{n} × {problem.x.shape[-1]}, {threads} thread(s)"
        seconds = measure(updates, options.rounds, options.budget, label, options.cold)
        del updates  # before the next crew is built
        times = {name: [1e3 * s for s in taken] for name, taken in seconds.items()}
        copy = crew[0]
        of_pass = [ms / copy.passes for ms in times[copy.name]]
        for method in crew[min(index, 1) :]:  # the copy is told once
            yield Result(
                method.name,
                method.kind,
                n,
                threads,
                times[method.name],
                method.passes,
                of_pass,
                problem.bytes_of_pass,
            )


def sizes(text: str) -> list[int]:
    values = sorted({int(part) for part in text.split(",")})
    least = 2 * max(RANKS)
    if values[0] < least:
        raise argparse.ArgumentTypeError(
            f"sizes must be at least {least}, twice the largest rank, got {values[0]}"
        )
    return values


def counts(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 1 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(
            f"numbers of threads must be at least 1 and differ, got {text}"
        )
    return values


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", type=sizes, default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--dtype", choices=["float32", "complex64"], default="float32")
    parser.add_argument("--batch", type=int, help="matrices in one parameter; one without batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a method and size")
    parser.add_argument("--threads", type=counts, default=[1], help="1,2 for one and for two")
    parser.add_argument(
        "--methods", nargs="+", default=[""], help="parts of names, or floor, ours, peer"
    )
    parser.add_argument("--cold", action="store_true", help="empty the caches before each update")
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--figure", type=Path, help="where the figure goes, if not there")
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    if options.batch is not None and options.batch < 1:
        parser.error(
            f"--batch must be at least 1, got {options.batch}; leave it out for single matrices"
        )
    if options.smoke:
        options.sizes, options.rounds = [32, 48], 2
        options.batch = options.batch and 3
    options.shape = () if options.batch is None else (options.batch,)
    return options


def main(arguments: list[str] | None = None) -> Report:
    options = parse(arguments)
    torch.manual_seed(0)
    baselines = {OURS, COPY}
    chosen = [
        method
        for method in [*methods(options.device, options.compile), *peers()]
        if method.name in baselines
        or any(part in f"{method.kind}: {method.name}" for part in options.methods)
    ]
    chosen = suited(chosen, options)
    report = Report(machine(options))
    options.output.mkdir(parents=True, exist_ok=True)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for n in options.sizes:
            report.results += run_size(n, chosen, report.of(threads), options)
            write(report, options)
    torch.set_num_threads(options.threads[0])
    tall = [method for method in chosen if method.rectangular]
    for n in options.sizes if any(method.kind == "peer" for method in tall) else ():
        p = max(n // 4, max(RANKS))
        report.tall += run_size(n, tall, report.tall, options, p)
        write(report, options)
    if not options.shape:
        report.small = many_small(options, measure)
        report.peaks = peaks(64 if options.smoke else 4096, options)
        write(report, options)
    print(report.text())
    try:
        from update_figure import figure
    except ModuleNotFoundError:
        print("No figure; `pip install matplotlib` adds it.")
    else:
        figure(report, options.figure or options.output / "update.png")
    return report


def write(report: Report, options: argparse.Namespace) -> None:
    """Write what there is: a run that is cut off leaves the sizes it has finished."""
    (options.output / "update.json").write_text(json.dumps(report.as_json(), indent=1))
    (options.output / "update.md").write_text(report.text())


if __name__ == "__main__":
    main()
