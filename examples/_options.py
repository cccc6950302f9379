"""Kinds of numbers on the command line."""

import argparse


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def rank(text: str) -> int | None:
    """Parse the rank of a step."""
    return None if text == "full" else positive(text)
