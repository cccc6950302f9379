r"""Whole steps of matrices, one operator of torch each, where the extension serves.

By the tangent sketch or LSI, a retraction and the sweep: each matrix from its gradient to the
next point, and to what is remembered then, while it is in the cache.
"""

from array import array

import torch
from torch.utils.flop_counter import register_flop_formula

from . import batch, extension
from .batch import Pieces
from .extension import check
from .stages import check_stored, check_sweep, number_of

_HOW = "int k, bool is_lsi, str retraction, Tensor length, int sweep, Tensor counter, Tensor active"
_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define(f"step_(Tensor(a!)[] x, Tensor[] d, {_HOW}) -> Tensor")
_library.define(
    "momentum_step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!) buffer, float momentum,"
    f" float dampening, bool nesterov, {_HOW}) -> Tensor"
)
_library.define(
    "adam_step_(Tensor(a!)[] x, Tensor[] grad, Tensor(b!) first, Tensor(c!) second,"
    f" Tensor(d!)? most, float beta1, float beta2, float eps, {_HOW}) -> Tensor"
)

step_ = torch.ops.geoopt_projunn.step_.default
"""Step pieces of x along pieces of d, for LowRankUnitary.step_."""
momentum_step_ = torch.ops.geoopt_projunn.momentum_step_.default
"""The same along what :data:`.moments.momentum_direction` makes, which is never stored."""
adam_step_ = torch.ops.geoopt_projunn.adam_step_.default
"""The same along what :data:`.moments.adam_direction` makes, which is never stored."""


def _numbers(
    x: Pieces,
    d: Pieces,
    k: int,
    is_lsi: bool,
    retraction: str,
    length: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    turned: torch.Tensor,
) -> tuple[tuple[int, ...], tuple["array[int]", "array[int]"]]:
    """Check, and return what all kernels want to know, and what has to outlive their call."""
    b, n, dtype = batch.count(x), x[0].shape[-1], x[0].dtype
    if not 1 <= k <= n // 2:
        raise ValueError(f"`k` must be between 1 and n / 2 = {n // 2}, got {k}.")
    by_columns = check_stored(x, "x", b, n, dtype) + 2 * check_stored(d, "d", b, n, dtype)
    check_sweep(n, sweep)
    check(length, "length", (), torch.float64)
    check(counter, "counter", (b,), torch.int64)
    check(turned, "active", (b,), torch.bool)
    tables = array("q", [p.data_ptr() for p in x]), array("q", [p.data_ptr() for p in d])
    what = extension.KINDS[dtype], b, n, k, is_lsi, number_of(retraction)
    how = *what, by_columns, sweep, torch.get_num_threads()
    pieces = (number for table in tables for number in table.buffer_info())
    return (*how, *pieces, *(t.data_ptr() for t in (length, counter, turned))), tables


def _step_(
    x: list[torch.Tensor],
    d: list[torch.Tensor],
    k: int,
    is_lsi: bool,
    retraction: str,
    length: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    turned = active.clone(memory_format=torch.contiguous_format)
    counter = counter.contiguous()
    numbers, _tables = _numbers(x, d, k, is_lsi, retraction, length, sweep, counter, turned)
    extension.kernels.step(*numbers)
    # What autograd has saved must not change unnoticed.
    torch.autograd.graph.increment_version(x)
    return turned


def _momentum_step_(
    x: list[torch.Tensor],
    grad: list[torch.Tensor],
    buffer: torch.Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    k: int,
    is_lsi: bool,
    retraction: str,
    length: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    turned = active.clone(memory_format=torch.contiguous_format)
    counter = counter.contiguous()
    numbers, _tables = _numbers(x, grad, k, is_lsi, retraction, length, sweep, counter, turned)
    shape = _check_by_rows(x, grad)
    check(buffer, "buffer", shape, x[0].dtype)
    hyperparameters = array("d", (momentum, dampening))
    extension.kernels.momentum_step(
        *numbers, buffer.data_ptr(), nesterov, hyperparameters.buffer_info()[0]
    )
    torch.autograd.graph.increment_version([*x, buffer])
    return turned


def _adam_step_(
    x: list[torch.Tensor],
    grad: list[torch.Tensor],
    first: torch.Tensor,
    second: torch.Tensor,
    most: torch.Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    k: int,
    is_lsi: bool,
    retraction: str,
    length: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    turned = active.clone(memory_format=torch.contiguous_format)
    counter = counter.contiguous()
    numbers, _tables = _numbers(x, grad, k, is_lsi, retraction, length, sweep, counter, turned)
    shape, real = _check_by_rows(x, grad), x[0].real.dtype
    is_scalar = second.shape[1:] == (1, 1)
    small = (shape[0], 1, 1) if is_scalar else shape
    check(first, "first", shape, x[0].dtype)
    check(second, "second", small, real)
    if most is not None:
        check(most, "most", small, real)
    hyperparameters = array("d", (beta1, beta2, eps))
    changed = [first, second] if most is None else [first, second, most]
    moments = (0 if t is None else t.data_ptr() for t in (first, second, most))
    extension.kernels.adam_step(*numbers, is_scalar, *moments, hyperparameters.buffer_info()[0])
    torch.autograd.graph.increment_version([*x, *changed])
    return turned


def _check_by_rows(x: Pieces, grad: Pieces) -> tuple[int, int, int]:
    """Refuse gradients stored otherwise than what is remembered; return the shape of that."""
    n = x[0].shape[-1]
    check(grad[0], "grad", tuple(grad[0].shape), x[0].dtype)
    return batch.count(x), n, n


_library.impl("step_", _step_, "CPU")
_library.impl("momentum_step_", _momentum_step_, "CPU")
_library.impl("adam_step_", _adam_step_, "CPU")

for _operator in (step_, momentum_step_, adam_step_):
    torch.library.register_fake(_operator, lambda *arguments: torch.empty_like(arguments[-1]))


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
    k, is_lsi, _retraction, _length, sweep, _counter, _active = rest[-7:]
    return _flops(x, k, is_lsi, sweep)  # type: ignore[arg-type]
