r"""Whole steps of matrices, one operator of torch each, where the extension serves.

By the tangent sketch or LSI, a retraction and the sweep: each matrix from its gradient to the
next point, and to what is remembered then, while it is in the cache. Nothing is copied: points,
gradients and what is remembered may lie in any number of tensors. ``step`` counts the steps taken,
and ``skipped`` those that were not finite, which change nothing else.
"""

import math
from array import array
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import batch, extension
from .batch import Pieces
from .extension import Refused, check
from .stages import check_rank, check_stored, check_sweep, number_of

_HOW = (
    "Tensor({})[] step, Tensor({})[] skipped, int k, bool is_lsi, str retraction, Tensor length,"
    " int sweep"
)
_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define(f"step_(Tensor(a!)[] x, Tensor[] d, {_HOW.format('b!', 'c!')}) -> ()")
_library.define(
    "momentum_step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] buffer, float momentum,"
    f" float dampening, bool nesterov, {_HOW.format('c!', 'd!')}) -> ()"
)
_library.define(
    "adam_step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] first, Tensor(c!)[] second,"
    " Tensor(d!)[] most, float beta1, float beta2, float eps,"
    f" {_HOW.format('e!', 'f!')}) -> ()"
)

step_ = torch.ops.geoopt_projunn.step_.default
"""Step pieces of x along pieces of d, for LowRankUnitary.step_whole_."""
momentum_step_ = torch.ops.geoopt_projunn.momentum_step_.default
"""The same along what :data:`.moments.momentum_direction` makes, which is never stored."""
adam_step_ = torch.ops.geoopt_projunn.adam_step_.default
"""The same along what :data:`.moments.adam_direction` makes, which is never stored.

``most`` is empty without AMSGrad.
"""


class _Call:
    """The arguments of a kernel, checked, and what has to outlive its call."""

    def __init__(self, x: Pieces, d: Pieces) -> None:
        self.b, self.n, self.dtype = batch.count(x), x[0].shape[-1], x[0].dtype
        self.lead = x[0].shape[:-2]
        self.changed: list[torch.Tensor] = []
        self._kept: list[array[Any]] = []
        by_columns = check_stored(x, "x", self.b, self.n, self.dtype)
        self.by_columns = by_columns + 2 * check_stored(d, "d", self.b, self.n, self.dtype)

    def table(self, pieces: Pieces, *, changes: bool = True) -> tuple[int, int]:
        """Return where the addresses of some pieces are, and how many."""
        table = array("q", [piece.data_ptr() for piece in pieces])
        self._kept.append(table)
        if changes:
            self.changed += pieces
        return table.buffer_info()

    def numbers(self, *values: float) -> int:
        """Return where some numbers are."""
        self._kept.append(array("d", values))
        return self._kept[-1].buffer_info()[0]

    def remembered(
        self, pieces: Pieces, name: str, each: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[int, int]:
        """Check what is remembered of each matrix; return its table."""
        shape = (*self.lead, *each)
        for piece in pieces:
            if piece.shape != shape or piece.dtype != dtype or not piece.is_contiguous():
                check(piece, name, shape, dtype)
        if len(pieces) * math.prod(self.lead) != self.b:
            raise Refused(f"`{name}` must be of {self.b} matrices, got {len(pieces)} tensors.")
        return self.table(pieces)

    def how(
        self,
        x: Pieces,
        d: Pieces,
        step: Pieces,
        skipped: Pieces,
        k: int,
        is_lsi: bool,
        retraction: str,
        length: torch.Tensor,
        sweep: int,
    ) -> tuple[int, ...]:
        """Check, and return what all kernels want to know."""
        check_rank(self.n, k)
        check_sweep(self.n, sweep)
        check(length, "length", (), torch.float64)
        what = extension.KINDS[self.dtype], self.b, self.n, k, is_lsi, number_of(retraction)
        return (
            *what,
            self.by_columns,
            sweep,
            torch.get_num_threads(),
            length.data_ptr(),
            *self.table(x),
            *self.table(d, changes=False),
            *self.remembered(step, "step", (), torch.int64),
            *self.remembered(skipped, "skipped", (), self.dtype.to_real()),
        )

    def finish(self) -> None:
        # What autograd has saved must not change unnoticed.
        torch.autograd.graph.increment_version(self.changed)


def _step_(x: list[torch.Tensor], d: list[torch.Tensor], *how: Any) -> None:
    call = _Call(x, d)
    extension.kernels.step(*call.how(x, d, *how))
    call.finish()


def _momentum_step_(
    x: list[torch.Tensor],
    grad: list[torch.Tensor],
    buffer: list[torch.Tensor],
    momentum: float,
    dampening: float,
    nesterov: bool,
    *how: Any,
) -> None:
    call = _Call(x, grad)
    numbers = call.how(x, grad, *how)
    _check_by_rows(grad)
    table = call.remembered(buffer, "buffer", (call.n, call.n), call.dtype)
    extension.kernels.momentum_step(*numbers, *table, nesterov, call.numbers(momentum, dampening))
    call.finish()


def _adam_step_(
    x: list[torch.Tensor],
    grad: list[torch.Tensor],
    first: list[torch.Tensor],
    second: list[torch.Tensor],
    most: list[torch.Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    *how: Any,
) -> None:
    call = _Call(x, grad)
    numbers = call.how(x, grad, *how)
    _check_by_rows(grad)
    n, real = call.n, call.dtype.to_real()
    is_scalar = second[0].shape[-2:] == (1, 1)
    small = (1, 1) if is_scalar else (n, n)
    tables = (
        *call.remembered(first, "first", (n, n), call.dtype),
        *call.remembered(second, "second", small, real),
        *(call.remembered(most, "most", small, real) if most else (0, 0)),
    )
    extension.kernels.adam_step(*numbers, is_scalar, *tables, call.numbers(beta1, beta2, eps))
    call.finish()


def _check_by_rows(grad: Pieces) -> None:
    """Refuse gradients stored otherwise than what is remembered."""
    check(grad[0], "grad", tuple(grad[0].shape), grad[0].dtype)


_library.impl("step_", _step_, "CPU")
_library.impl("momentum_step_", _momentum_step_, "CPU")
_library.impl("adam_step_", _adam_step_, "CPU")


def _step_without_data(*arguments: Any) -> None:
    devices = {t.device for pieces in arguments if isinstance(pieces, list) for t in pieces}
    if len(devices) > 1:
        raise RuntimeError(f"All tensors of a step must be on one device, got {devices}.")


for _operator in (step_, momentum_step_, adam_step_):
    torch.library.register_fake(_operator, _step_without_data)


def _flops(x: list[torch.Size], k: int, is_lsi: bool, sweep: int) -> int:
    # The tangent sketch knows the products of k of the 2k rows that are turned.
    return ((6 if is_lsi else 16 - 2) * k + 4 * (2 * k + sweep)) * len(x) * x[0].numel()


@register_flop_formula(
    [
        torch.ops.geoopt_projunn.step_,
        torch.ops.geoopt_projunn.momentum_step_,
        torch.ops.geoopt_projunn.adam_step_,
    ]
)
def _(x: list[torch.Size], *rest: object, **__: object) -> int:
    # Entry by entry operations are not counted, as torch does not.
    k, is_lsi, _retraction, _length, sweep = rest[-5:]
    return _flops(x, k, is_lsi, sweep)  # type: ignore[arg-type]
