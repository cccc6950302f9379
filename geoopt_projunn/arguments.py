"""Checks of integers, names and modules that users pass, with one wording of their errors."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch


def checked_integer(name: str, value: Any, *, least: int | None = 1, remedy: str = "") -> int:
    """Return an integer of Python, numpy or another library as an int.

    Raise TypeError for a boolean, a float or a tensor, ValueError for an integer below ``least``,
    None for no limit. ``remedy`` is what the errors say to do instead.
    """
    end = f"; {remedy}." if remedy else "."
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}{end}")
    if least is not None and int(value) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}{end}")
    return int(value)


def assert_known(name: str, value: Any, known: Iterable[Any], whose: str = "") -> None:
    """Raise ValueError for a value that is none of some names, or of None.

    ``whose`` says in the error what the choice depends on.
    """
    known = list(known)
    # In a list, for a value of another type may have no hash.
    if not (value is None or isinstance(value, str)) or value not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"`{name}` must be one of {choices}{whose}, got {value!r}.")


def assert_flag(name: str, value: Any, *, may_be_none: bool = False, remedy: str = "") -> None:
    """Raise TypeError unless a value is a bool; the text "False" would count as true.

    Those of numpy are refused, as torch's layers do: `torch.load` takes no state that holds them.
    ``remedy`` is what the error says to do instead.
    """
    if value is True or value is False or (may_be_none and value is None):
        return
    choices = "None, True or False" if may_be_none else "True or False"
    end = f"; {remedy}." if remedy else "."
    raise TypeError(f"`{name}` must be {choices}, got {value!r}{end}")


def assert_module(name: str, value: Any) -> None:
    """Raise TypeError for what is no module, such as ``model.parameters()``."""
    if not isinstance(value, torch.nn.Module):
        raise TypeError(
            f"`{name}` must be a torch.nn.Module, got {type(value).__name__}; pass the model "
            "itself, several in a torch.nn.ModuleList."
        )
