"""Kinds of values on the command line."""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path


def not_negative(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def at_least(least: int, why: str) -> Callable[[str], int]:
    """Return a parser of whole numbers from this one on."""

    def parse(text: str) -> int:
        if positive(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, {why}, got {text!r}")
        return int(text)

    return parse


def rank(text: str) -> int | None:
    """Parse the rank of a step."""
    return None if text == "full" else positive(text)


def check_ranks(
    parser: argparse.ArgumentParser, ks: Iterable[int | None], option: str, size: int
) -> None:
    """Refuse ranks of steps that are too high for matrices whose size an option gives."""
    if any(k is not None and k > size // 2 for k in ks):
        parser.error(f"--k must be at most {option} / 2 = {size // 2}")


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def output_folder(text: str) -> Path:
    """Parse the path of a folder, which need not be there yet."""
    path = Path(text)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"expected a folder, but {str(part)!r} is a file")
    return path
