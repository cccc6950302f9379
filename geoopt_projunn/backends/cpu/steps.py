"""Whole steps as one operator of torch."""

import math
from array import array

import torch
from torch.utils.flop_counter import register_flop_formula

from ...normalization import noise_floor
from ..batch import count
from .kernels import (
    KINDS,
    NORMALIZATIONS,
    RETRACTIONS,
    RULES,
    SKETCHES,
    Refused,
    check,
    check_choice,
    check_numbers,
    is_plain,
    kernels,
)
from .operators import FLOPS_OF_SKETCH, Tensors, check_stored, mark_changed

_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define(
    "step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] state, Tensor(c!)[] step,"
    " Tensor(d!)[] skipped, str rule, float[] numbers, int k, str sketch, str retraction,"
    " float length, int sweep, str? normalize) -> ()"
)
step_ = torch.ops.geoopt_projunn.step_.default
"""Reference.step_, for the rules, sketches and retractions that the kernels know.

``state`` holds what the rule keeps: the pieces of its first buffer, then those of its second, ...
"""


class _Tables:
    """Addresses of tensors, and numbers, that live as long as a kernel runs."""

    def __init__(self, lead: torch.Size, b: int) -> None:
        self._lead, self._b = lead, b
        self._kept: list[array[int] | array[float]] = []

    def of(self, pieces: Tensors) -> tuple[int, int]:
        """Return where the addresses of some tensors are, and how many."""
        self._kept.append(array("q", [piece.data_ptr() for piece in pieces]))
        return self._kept[-1].buffer_info()

    def checked(
        self, pieces: Tensors, name: str, each: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[int, int]:
        """Check that there is one value, or one matrix, for each point; return the table."""
        shape = (*self._lead, *each)
        for piece in pieces:
            if piece.shape != shape or piece.dtype != dtype or not piece.is_contiguous():
                check(piece, name, shape, dtype)
        if len(pieces) * math.prod(self._lead) != self._b:
            raise Refused(f"`{name}` must be of {self._b} matrices, got {len(pieces)} tensors.")
        return self.of(pieces)

    def numbers(self, values: list[float]) -> int:
        """Return where some numbers are."""
        self._kept.append(array("d", values))
        return self._kept[-1].buffer_info()[0]


def _step_(
    x: Tensors,
    grad: Tensors,
    state: Tensors,
    step: Tensors,
    skipped: Tensors,
    rule: str,
    numbers: list[float],
    k: int,
    sketch: str,
    retraction: str,
    length: float,
    sweep: int,
    normalize: str | None,
) -> None:
    (*lead, n, p), dtype = x[0].shape, x[0].dtype
    b = count(x)
    check_numbers(n, p, k, sweep)
    rule_number = check_choice("rule", rule, RULES)
    buffer_counts, number_count = RULES[rule]
    if len(state) not in [buffers * len(x) for buffers in buffer_counts]:
        raise Refused(
            f"`state` must be {' or '.join(map(str, buffer_counts))} buffers of {len(x)} tensors "
            f"for {rule!r}, got {len(state)} tensors."
        )
    if len(numbers) != number_count:
        raise Refused(f"`numbers` must be {number_count} for {rule!r}, got {len(numbers)}.")
    x_by_columns = check_stored(x, "x", b, n, p, dtype)
    grad_by_columns = check_stored(grad, "grad", b, n, p, dtype)
    tables = _Tables(torch.Size(lead), b)
    # The first buffer is like the points; the others are real, a number for each entry or for all.
    is_scalar = len(state) > len(x) and state[len(x)].shape[-2:] == (1, 1)
    of_buffers = [0, 0] * 3
    for i in range(len(state) // len(x)):
        pieces = state[i * len(x) : (i + 1) * len(x)]
        if grad_by_columns:
            pieces = [piece.mT for piece in pieces]
            # What is made entry by entry of both has to be stored alike.
            if not all(map(is_plain, pieces)):
                raise Refused("`grad` must be stored by rows like the state, not by columns.")
        sides = (p, n) if grad_by_columns else (n, p)
        each, kind = ((1, 1) if i and is_scalar else sides), (dtype.to_real() if i else dtype)
        of_buffers[2 * i : 2 * i + 2] = tables.checked(pieces, "state", each, kind)
    kernels.step(
        *(KINDS[dtype], b, n, p, k, check_choice("sketch", sketch, SKETCHES)),
        *(
            check_choice("retraction", retraction, RETRACTIONS),
            x_by_columns + 2 * grad_by_columns,
            sweep,
        ),
        *(torch.get_num_threads(), tables.numbers([length]), *tables.of(x), *tables.of(grad)),
        *tables.checked(step, "step", (), torch.int64),
        *tables.checked(skipped, "skipped", (), dtype.to_real()),
        *(rule_number, tables.numbers(numbers), *of_buffers, is_scalar),
        *(
            check_choice("normalize", normalize, NORMALIZATIONS),
            tables.numbers([noise_floor(x[0])]),
        ),
    )
    mark_changed([*x, *state, *step, *skipped])


def _step_without_data(
    x: Tensors, grad: Tensors, state: Tensors, step: Tensors, skipped: Tensors, *_: object
) -> None:
    devices = {t.device for t in (*x, *grad, *state, *step, *skipped)}
    if len(devices) > 1:
        raise RuntimeError(f"All tensors of a step must be on one device, got {devices}.")


_library.impl("step_", _step_, "CPU")
torch.library.register_fake("geoopt_projunn::step_", _step_without_data)


@register_flop_formula(torch.ops.geoopt_projunn.step_)
def _(x: list[torch.Size], *rest: object, **__: object) -> int:
    # Entry by entry operations are not counted, as torch does not.
    k, sketch, _retraction, _length, sweep, _normalize = rest[-6:]
    # The tangent sketch knows the products of k of the 2k rows that are turned.
    of_sketch = {**FLOPS_OF_SKETCH, "tangent": 14}[str(sketch)]
    return (of_sketch * k + 4 * (2 * k + sweep)) * len(x) * x[0].numel()  # type: ignore[operator]
