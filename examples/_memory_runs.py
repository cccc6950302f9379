"""Experiments on memory: every network on every task from every seed."""

import argparse
from pathlib import Path

import torch
from _memory_report import draw, print_table
from _networks import Network
from _tables import write_csv
from _tasks import MemoryTask, Row
from _training import train


def run(tasks: list[MemoryTask], chosen: list[Network], options: argparse.Namespace) -> list[Row]:
    """Train every network on every task; write, draw and return all that the folder holds."""
    folder = options.output / options.name
    for task in tasks if options.iterations else []:
        for seed in options.seeds:
            for network in chosen:
                for _ in train(
                    task,
                    network,
                    seed,
                    options.iterations,
                    every=options.every,
                    clip=options.clip,
                    folder=folder,
                    settings={name: getattr(options, name) for name in options.fixed},
                ):
                    write_csv(_history(folder, tasks), folder.with_suffix(".csv"))
    rows = _history(folder, tasks)
    print_table(rows, tasks)
    draw(rows, tasks, folder.with_suffix(".png"))
    return rows


def _history(folder: Path, tasks: list[MemoryTask]) -> list[Row]:
    """Return the rows of all saved runs of some tasks, also those of earlier calls."""
    return [
        task.completed(row)
        for task in tasks
        for path in sorted((folder / task.name).glob("*.pt"))
        for row in torch.load(path)["rows"]
    ]
