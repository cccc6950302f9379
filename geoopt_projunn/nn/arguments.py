"""Checks of the arguments that modules share, with one wording of their errors."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from ..arguments import assert_flag, checked_integer
from ..linalg.precision import WIDE


def integers(least: int | None = 1, **values: Any) -> list[int]:
    """Return integers of at least ``least`` by their names, or raise; None for no limit."""
    return [checked_integer(name, value, least=least) for name, value in values.items()]


def positive_tuple(name: str, value: Any, dims: int) -> tuple[int, ...]:
    """Return one positive integer for each axis, or raise."""
    values = (value,) * dims if isinstance(value, Integral) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != dims:
        raise TypeError(f"`{name}` must be an integer or a tuple of {dims}, got {value!r}.")
    return tuple(checked_integer(name, one) for one in values)


def assert_bias(bias: Any) -> None:
    """Raise unless ``bias`` of a convolution is a bool: in torch's, its place is `padding`'s."""
    remedy = "if it is meant as `padding`, leave it out, because the padding here is circular"
    assert_flag("bias", bias, remedy=remedy)


def checked_dtype(
    owner: object, dtype: torch.dtype | None, is_complex: bool, counterpart: str
) -> torch.dtype:
    """Return the dtype that a module was asked for, torch's default for None, or raise.

    ``counterpart`` is the class for the other field, "" if there is none.
    """
    if dtype is None:
        default = torch.get_default_dtype()
        dtype = default.to_complex() if is_complex else default
    if dtype not in WIDE or dtype.is_complex != is_complex:
        known = " or ".join(str(d) for d in WIDE if d.is_complex == is_complex)
        if dtype not in WIDE:
            kind = known.partition(" ")[0]
            remedy = f"make the layer with `dtype={kind}`, which autocast takes as well"
        elif counterpart:
            remedy = f"use {counterpart}"
        else:
            remedy = "call `orthogonalize_` for a complex weight of another module"
        raise TypeError(
            f"`dtype` of {type(owner).__name__} must be {known}, got {dtype}; {remedy}."
        )
    return dtype


def assert_real_dtype(what: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError unless a dtype is real; ``what`` begins the reason, "the offset is"."""
    if dtype is not None and not dtype.is_floating_point:
        right = dtype.to_real() if dtype.is_complex else torch.float32
        raise TypeError(f"`dtype` must be real, got {dtype}; {what} real, use `dtype={right}`.")


def assert_dtype_of_layer(name: str, x: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise TypeError for a signal of another dtype, except where autocast would convert it."""
    # The meta device has no autocast, and torch raises an error if it is asked.
    if x.dtype != dtype and (x.is_meta or not torch.is_autocast_enabled(x.device.type)):
        other = f", or the layer with `layer.to({x.dtype})`" if x.dtype in WIDE else ""
        raise TypeError(
            f"`{name}` must have the dtype of the layer, {dtype}, got {x.dtype}; convert it{other}."
        )
