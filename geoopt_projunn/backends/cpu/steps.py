"""Whole steps as one operator of torch."""

import functools
import itertools
import math
from typing import Any

import torch

from ...normalization import noise_floor
from . import kernels
from .kernels import Refused, check_choice, is_by_columns, is_plain
from .operators import FLOPS_OF_SKETCH, mark_changed, operator

Tensors = list[torch.Tensor]
Form = tuple[str, torch.Size, torch.dtype]


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size, dtype: torch.dtype, layout: tuple[int, ...], *rest: Any
) -> tuple[tuple[int, ...], float, list[Form]]:
    """Check all but single tensors, and return what steps of such ones have in common.

    The integers of the kernel, its noise floor, and what tensors have to be.
    """
    pieces, of_state, of_numbers, rule, k, sketch, retraction, normalize, sweep = rest
    *lead, n, p = shape
    kernels.check_numbers(n, p, k, sweep)
    integers = (
        *(kernels.KINDS[dtype], pieces * math.prod(lead), n, p, k),
        check_choice("sketch", sketch, kernels.SKETCHES),
        check_choice("retraction", retraction, kernels.RETRACTIONS),
        check_choice("normalize", normalize, kernels.NORMALIZATIONS),
        *(sweep, check_choice("rule", rule, kernels.RULES), *layout),
    )
    buffers, numbers = kernels.RULES[rule]
    if of_state not in [count * pieces for count in buffers]:
        raise Refused(
            f"`state` must be {' or '.join(map(str, buffers))} buffers of {pieces} tensors "
            f"for {rule!r}, got {of_state} tensors."
        )
    if of_numbers != numbers:
        raise Refused(f"`numbers` must be {numbers} for {rule!r}, got {of_numbers}.")
    by_columns, is_scalar, _ = layout
    sides = (p, n) if by_columns & 2 else (n, p)
    number, whole, each = (
        torch.Size((*lead, *some)) for some in ((), sides, (1, 1) if is_scalar else sides)
    )
    # The first buffer is like the points; the others are real, a number for each entry or for all.
    real = dtype.to_real()
    forms = [
        *(("x", shape, dtype), ("grad", shape, dtype)),
        *(("step", number, torch.int64), ("skipped", number, real)),
        *(("state", whole, dtype), ("state", each, real), ("state", each, real)),
    ]
    return integers, noise_floor(torch.empty(shape, dtype=dtype, device="meta")), forms


def _addresses(
    pieces: Tensors, form: Form, strides: tuple[int, ...] | None, many: int
) -> list[int]:
    """Check tensors, which are contiguous or have these strides, and return where they are."""
    name, shape, dtype = form
    if len(pieces) != many:
        b = many * math.prod(shape if name in ("step", "skipped") else shape[:-2])
        raise Refused(f"`{name}` must be of {b} matrices, got {len(pieces)} tensors.")
    if strides is not None and not kernels.is_stored(pieces[0]):
        kernels.check(pieces[0], name, shape, dtype)
    for t in pieces:
        is_laid_out = t.is_contiguous() if strides is None else t.stride() == strides
        if t.shape != shape or t.dtype != dtype or not is_laid_out:
            if strides is None or t is pieces[0]:
                kernels.check(t, name, shape, dtype)
            raise Refused(
                f"`{name}` must be tensors of one shape, strides and dtype, got {tuple(shape)}, "
                f"{strides} and {dtype}, and {tuple(t.shape)}, {t.stride()} and {t.dtype}."
            )
    return [t.data_ptr() for t in pieces]


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
    many, by_columns = len(x), is_by_columns(x[0]) + 2 * is_by_columns(grad[0])
    buffers = [state[i : i + many] for i in range(0, len(state), many)]
    if by_columns & 2:
        buffers = [[t.mT for t in pieces] for pieces in buffers]
        # What is made entry by entry of both has to be stored alike.
        if not all(map(is_plain, itertools.chain(*buffers))):
            raise Refused("`grad` must be stored by rows like the state, not by columns.")
    is_scalar = len(buffers) > 1 and buffers[1][0].shape[-2:] == (1, 1)
    layout = by_columns, is_scalar, torch.get_num_threads()
    rest = many, len(state), len(numbers), rule, k, sketch, retraction, normalize, sweep
    integers, floor, forms = _plan(x[0].shape, x[0].dtype, layout, *rest)
    strides = x[0].stride(), grad[0].stride(), *[None] * 5
    tables = map(_addresses, (x, grad, step, skipped, *buffers), forms, strides, [many] * 7)
    kernels.kernels.step(integers, (length, floor, *numbers), *tables)
    mark_changed([*x, *state, *step, *skipped])
