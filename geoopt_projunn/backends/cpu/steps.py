"""Whole steps as one operator of torch."""

import math
from array import array

import torch
from torch.utils.flop_counter import register_flop_formula

from .kernels import (
    KINDS,
    RETRACTIONS,
    RULES,
    SKETCHES,
    Refused,
    check,
    check_choice,
    check_numbers,
    kernels,
)
from .operators import FLOPS_OF_SKETCH, Tensors, check_stored, mark_changed

_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define(
    "step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] state, Tensor(c!)[] step,"
    " Tensor(d!)[] skipped, str rule, float[] numbers, int k, str sketch, str retraction,"
    " Tensor length, int sweep) -> ()"
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
    length: torch.Tensor,
    sweep: int,
) -> None:
    lead, n, dtype = x[0].shape[:-2], x[0].shape[-1], x[0].dtype
    b = len(x) * math.prod(lead)
    check_numbers(n, k, sweep)
    rule_number = check_choice("rule", rule, RULES)
    of_x, of_grad = check_stored(x, "x", b, n, dtype), check_stored(grad, "grad", b, n, dtype)
    if of_grad and rule != "gradient":
        raise Refused("`grad` must be stored by rows like the state, but is stored by columns.")
    check(length, "length", (), torch.float64)
    tables = _Tables(lead, b)
    kept, is_scalar = [0, 0] * 3, False
    for i in range(len(state) // len(x)):
        pieces = state[i * len(x) : (i + 1) * len(x)]
        # The first is of the dtype of the points, then real ones: of each entry or of all.
        is_scalar = i > 0 and pieces[0].shape[-2:] == (1, 1)
        each, kind = ((1, 1) if is_scalar else (n, n)), (dtype.to_real() if i else dtype)
        kept[2 * i : 2 * i + 2] = tables.checked(pieces, "state", each, kind)
    kernels.step(
        *(KINDS[dtype], b, n, k, check_choice("sketch", sketch, SKETCHES)),
        *(check_choice("retraction", retraction, RETRACTIONS), of_x + 2 * of_grad, sweep),
        *(torch.get_num_threads(), length.data_ptr(), *tables.of(x), *tables.of(grad)),
        *tables.checked(step, "step", (), torch.int64),
        *tables.checked(skipped, "skipped", (), dtype.to_real()),
        *(rule_number, tables.numbers(numbers), *kept, is_scalar),
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
    k, sketch, _retraction, _length, sweep = rest[-5:]
    # The tangent sketch knows the products of k of the 2k rows that are turned.
    of_sketch = {**FLOPS_OF_SKETCH, "tangent": 14}[str(sketch)]
    return (of_sketch * k + 4 * (2 * k + sweep)) * len(x) * x[0].numel()  # type: ignore[operator]
