"""Checks of numbers, names and modules that users pass, with one wording of their errors."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch

# Schedules leave a rate of -5e-18 where it should be 0.
ROUNDING = 1e-12
NUMBERS = (int, float, np.integer, np.floating)


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


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Raise an error unless low <= value < high; the value of a tensor on a GPU is not read.

    Nor is one refused that is not finite: wherever the tensor is, it only skips steps.
    """
    # This runs in every step, and few values are anything else.
    if type(value) is float and low <= value < high:
        return
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"`{name}` must be one number, got a tensor of {value.numel()}.")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"`{name}` must be a real number, got a tensor of {value.dtype}.")
        if not value.is_cpu or not math.isfinite(value := value.detach().item()):
            return
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(
            f"`{name}` must be a number, got {value!r}; pass an int, a float or a tensor."
        )
    if not low - ROUNDING <= value or not (value < high or value == low):
        raise ValueError(f"`{name}` must lie in [{low}, {high}), got {value}.")


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


def assert_some_low_rank(model: torch.nn.Module, found: Collection[Any]) -> None:
    """Raise ValueError if a model was found to have no parameter on these manifolds."""
    if not found:
        raise ValueError(
            "`model` must have a parameter on LowRankUnitary or LowRankStiefel, but "
            f"{type(model).__name__} has none; make one a `geoopt.ManifoldParameter`, call "
            "`orthogonalize_`, or use a layer of `geoopt_projunn.nn`."
        )


def assert_has_values(name: str, p: torch.Tensor) -> None:
    """Raise ValueError for a parameter on the meta device."""
    if p.is_meta:
        raise ValueError(
            f"`{name}` must have values, but is on the meta device; call `to_empty` and load "
            "values."
        )
