"""Whole steps as one operator of torch."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from ...normalization import noise_floor
from . import kernels
from .kernels import Refused, check_choice
from .operators import FLOPS_OF_SKETCH, mark_changed, operator

Tensors = list[torch.Tensor]
Shape = tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size, dtype: torch.dtype, pieces: int, state: int, numbers: int, *names: Any
) -> tuple[tuple[int, ...], float]:
    """Check all but tensors, and return what steps of such points have in common.

    The integers of the kernel and its noise floor.
    """
    rule, k, sketch, retraction, normalize, sweep = names
    *_, n, p = shape
    kernels.check_numbers(n, p, k, sweep)
    integers = (
        *(k, check_choice("sketch", sketch, kernels.SKETCHES)),
        check_choice("retraction", retraction, kernels.RETRACTIONS),
        check_choice("normalize", normalize, kernels.NORMALIZATIONS),
        *(sweep, check_choice("rule", rule, kernels.RULES)),
    )
    buffers, of_rule = kernels.RULES[rule]
    if state not in [count * pieces for count in buffers]:
        raise Refused(
            f"`state` must be {' or '.join(map(str, buffers))} buffers of {pieces} tensors "
            f"for {rule!r}, got {state} tensors."
        )
    if numbers != of_rule:
        raise Refused(f"`numbers` must be {of_rule} for {rule!r}, got {numbers}.")
    return integers, noise_floor(torch.empty(shape, dtype=dtype, device="meta"))


def _refuse(lists: Sequence[Tensors], number: int, at: int, shape: Shape, kind: int) -> NoReturn:
    """Say what the kernels have found: one of the lists of tensors, and one tensor of it."""
    name, dtype = ("x", "grad", "step", "skipped", "state")[number], kernels.DTYPES[kind]
    many = len(lists[0])
    if at < 0:
        b = many * math.prod(shape[:-2] if name == "grad" else shape)
        raise Refused(f"`{name}` must be of {b} matrices, got {len(lists[number])} tensors.")
    t, first = lists[number][at], lists[number][0]
    if at == 0 or number > 1:
        kernels.check(t, name, shape, dtype)
        # What is made entry by entry of both has to be stored alike.
        raise Refused("`grad` must be stored by rows like the state, not by columns.")
    raise Refused(
        f"`{name}` must be tensors of one shape, strides and dtype, got {tuple(first.shape)}, "
        f"{first.stride()} and {first.dtype}, and {tuple(t.shape)}, {t.stride()} and {t.dtype}."
    )


def _without_data(
    x: Tensors, grad: Tensors, state: Tensors, step: Tensors, skipped: Tensors, *_: object
) -> None:
    devices = {t.device for t in (*x, *grad, *state, *step, *skipped)}
    if len(devices) > 1:
        raise RuntimeError(f"All tensors of a step must be on one device, got {devices}.")


def _flops(x: list[torch.Size], *rest: object, **__: object) -> int:
    # Entry by entry operations are not counted, as torch does not.
    k, sketch, _retraction, _length, sweep, _normalize = rest[-6:]
    # The tangent sketch knows the products of k of the 2k rows that are turned.
    of_sketch = {**FLOPS_OF_SKETCH, "tangent": 14}[str(sketch)]
    return (of_sketch * k + 4 * (2 * k + sweep)) * len(x) * x[0].numel()  # type: ignore[operator]


@operator(
    "(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] state, Tensor(c!)[] step, Tensor(d!)[] skipped,"
    " str rule, float[] numbers, int k, str sketch, str retraction, float length, int sweep,"
    " str? normalize) -> ()",
    _without_data,
    _flops,
)
def step_(
    x: Tensors, grad: Tensors, state: Tensors, step: Tensors, skipped: Tensors, *options: Any
) -> None:
    """Do what Reference.step_ does, for the rules, sketches and retractions of the kernels.

    ``state`` holds what the rule keeps: the pieces of its first buffer, then those of its second...
    """
    rule, numbers, k, sketch, retraction, length, sweep, normalize = options
    counts = len(x), len(state), len(numbers)
    names = rule, k, sketch, retraction, normalize, sweep
    integers, floor = _plan(x[0].shape, x[0].dtype, *counts, *names)
    integers, reals = (*integers, torch.get_num_threads()), (length, floor, *numbers)
    lists = x, grad, step, skipped, state
    misfit = kernels.kernels.step(kernels.DTYPES, integers, reals, *lists)
    if misfit is not None:
        _refuse(lists, *misfit)
    mark_changed([*x, *state, *step, *skipped])
