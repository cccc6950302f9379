"""Experiments on memory: every network on every task from every seed."""

import argparse
import itertools
from pathlib import Path

import torch
from _memory_report import draw, print_table
from _networks import Network
from _tables import write_csv
from _tasks import MemoryTask, Row
from _training import as_options, differing, saved_run, train


def run(tasks: list[MemoryTask], chosen: list[Network], options: argparse.Namespace) -> list[Row]:
    """Train every network on every task; write, draw and return all that the folder holds."""
    folder = options.output / options.name
    settings = {name: getattr(options, name) for name in options.fixed}
    trained = tasks if options.iterations else []
    each = itertools.product(trained, options.seeds, chosen)
    runs = [(task, network, seed) for task, seed, network in each]
    for one in runs:
        saved_run(*one, folder, settings)  # is refused before others train for hours
    for one in runs:
        for _ in train(
            *one,
            options.iterations,
            every=options.every,
            clip=options.clip,
            folder=folder,
            settings=settings,
        ):
            write_csv(_history(folder, tasks), folder.with_suffix(".csv"))
    rows = _history(folder, tasks)
    print_table(rows, tasks)
    draw(rows, tasks, folder.with_suffix(".png"))
    return rows


def _history(folder: Path, tasks: list[MemoryTask]) -> list[Row]:
    """Return the rows of all saved runs of some tasks, also those of earlier calls.

    The settings in which the runs of a task differ are added to the names of the networks.
    """
    rows = []
    for task in tasks:
        runs = [torch.load(path) for path in sorted((folder / task.name).glob("*.pt"))]
        names = differing([run["settings"] for run in runs])
        for run in runs:
            added = f" ({as_options(run['settings'], names)})" if names else ""
            rows += [
                task.completed({**row, "network": row["network"] + added}) for row in run["rows"]
            ]
    return rows
