"""The kernels as operators of torch: they say their shapes without data and count their flops.

Each checks what its kernel does not look at, and raises :class:`.kernels.Refused` before anything
has changed.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from ...linalg.precision import WIDE
from ..batch import count
from .kernels import (
    KINDS,
    RETRACTIONS,
    SKETCHES,
    Refused,
    check,
    check_choice,
    check_numbers,
    is_plain,
    kernels,
)

Tensors = list[torch.Tensor]

_library = torch.library.Library("geoopt_projunn", "DEF")
for _schema in (
    "both_sides(Tensor left, Tensor right, Tensor x) -> (Tensor, Tensor)",
    "add_product_(Tensor(a!) x, Tensor rows, Tensor factor) -> ()",
    "sketch(Tensor x, Tensor d, int k, Tensor counter, str name) -> (Tensor, Tensor)",
    "retract(Tensor core, str name) -> Tensor",
    "turn_(Tensor(a!) x, Tensor rows, Tensor delta, int sweep, Tensor counter, Tensor active)"
    " -> Tensor",
):
    _library.define(_schema)

both_sides = torch.ops.geoopt_projunn.both_sides.default
"""left @ x and right @ x.mH"""
add_product_ = torch.ops.geoopt_projunn.add_product_.default
"""x += rows.mH @ factor, in place"""
sketch = torch.ops.geoopt_projunn.sketch.default
"""geoopt_projunn.sketches.SKETCHES[name], its rows and core"""
retract = torch.ops.geoopt_projunn.retract.default
"""geoopt_projunn.retractions.RETRACTIONS[name]"""
turn_ = torch.ops.geoopt_projunn.turn_.default
"""geoopt_projunn.drift.turn_"""


def _addresses(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _rows(x: torch.Tensor, name: str, rows: torch.Tensor, size: int) -> torch.Tensor:
    """Return rows, (b, k, size), as they must lie in memory."""
    rows = rows.contiguous().resolve_conj()
    check(rows, name, (x.shape[0], rows.shape[-2], size), x.dtype)
    return rows


def _both_sides(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, m = x.shape
    check(x, "x", (b, n, m), x.dtype)
    left, right = _rows(x, "left", left, n), _rows(x, "right", right, m)
    outs = _shapes_of_both_sides(left, right, x)
    numbers = KINDS[x.dtype], b, n, m, left.shape[1], right.shape[1], torch.get_num_threads()
    kernels.both_sides(*numbers, *_addresses(x, left, right, *outs))
    return outs


def _shapes_of_both_sides(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, m = x.shape
    return x.new_empty((b, left.shape[1], m)), x.new_empty((b, right.shape[1], n))


def _add_product_(x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
    b, n, m = x.shape
    check(x, "x", (b, n, m), x.dtype)
    rows, factor = _rows(x, "rows", rows, n), _rows(x, "factor", factor, m)
    check(factor, "factor", (b, rows.shape[1], m), x.dtype)
    numbers = KINDS[x.dtype], b, n, m, rows.shape[1], torch.get_num_threads()
    kernels.add_product(*numbers, *_addresses(x, rows, factor))
    mark_changed([x])


def mark_changed(tensors: Tensors) -> None:
    """Let autograd notice that tensors it has saved were changed."""
    torch.autograd.graph.increment_version(tensors)


def check_stored(pieces: Tensors, name: str, b: int, n: int, p: int, dtype: torch.dtype) -> bool:
    """Check a batch of n x p matrices; return whether they are stored by columns."""
    first = pieces[0]
    shape, strides = first.shape, first.stride()
    by_columns = not is_plain(first) and is_plain(first.mT)
    plain, sides = (first.mT, (p, n)) if by_columns else (first, (n, p))
    check(plain, name, (*shape[:-2], *sides), dtype)
    for piece in pieces[1:]:
        if piece.shape != shape or piece.stride() != strides or piece.dtype != dtype:
            raise Refused(
                f"`{name}` must be tensors of one shape, strides and dtype, got {tuple(shape)}, "
                f"{strides} and {dtype}, and {tuple(piece.shape)}, {piece.stride()} and "
                f"{piece.dtype}."
            )
    if count(pieces) != b:
        raise Refused(f"`{name}` must be {b} matrices, got {count(pieces)}.")
    return by_columns


def _sketch(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, p = x.shape
    counter = counter.contiguous()
    check_numbers(n, p, k)
    x_by_columns = check_stored([x], "x", b, n, p, x.dtype)
    by_columns = x_by_columns + 2 * check_stored([d], "d", b, n, p, x.dtype)
    check(counter, "counter", (b,), torch.int64)
    outs = _shapes_of_sketch(x, d, k, counter, name)
    number = check_choice("name", name, SKETCHES)
    numbers = KINDS[x.dtype], b, n, p, k, number, by_columns, torch.get_num_threads()
    kernels.sketch(*numbers, *_addresses(x, d, counter, *outs))
    return outs


def _shapes_of_sketch(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, _ = x.shape
    wide = WIDE[x.dtype]
    return x.new_empty((b, 2 * k, n), dtype=wide), x.new_empty((b, 2 * k, 2 * k), dtype=wide)


def _retract(core: torch.Tensor, name: str) -> torch.Tensor:
    core = core.contiguous().resolve_conj()
    b, r, _ = core.shape
    check(core, "core", (b, r, r), WIDE[core.dtype])
    delta = torch.empty_like(core)
    numbers = KINDS[core.dtype], check_choice("name", name, RETRACTIONS), b, r
    kernels.retract(*numbers, *_addresses(core, delta))
    return delta


def _turn_(
    x: torch.Tensor,
    rows: torch.Tensor,
    delta: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    (b, n, p), r = x.shape, rows.shape[-2]
    turned = active.clone(memory_format=torch.contiguous_format)
    delta, counter = delta.contiguous().resolve_conj(), counter.contiguous()
    by_columns = check_stored([x], "x", b, n, p, x.dtype)
    rows = _rows(x, "rows", rows, n)
    check(delta, "delta", (b, r, r), WIDE[x.dtype])
    check(counter, "counter", (b,), torch.int64)
    check(turned, "active", (b,), torch.bool)
    check_numbers(n, p, 1, sweep)
    numbers = KINDS[x.dtype], b, n, p, r, sweep, by_columns, torch.get_num_threads()
    kernels.turn(*numbers, *_addresses(x, rows, delta, counter, turned))
    mark_changed([x])
    return turned


for _name, _function, _without_data in (
    ("both_sides", _both_sides, _shapes_of_both_sides),
    ("add_product_", _add_product_, lambda x, rows, factor: None),
    ("sketch", _sketch, _shapes_of_sketch),
    (
        "retract",
        _retract,
        lambda core, name: torch.empty_like(core, memory_format=torch.contiguous_format),
    ),
    ("turn_", _turn_, lambda x, rows, delta, sweep, counter, active: torch.empty_like(active)),
):
    _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"geoopt_projunn::{_name}", _without_data)


@register_flop_formula(torch.ops.geoopt_projunn.both_sides)
def _(left: torch.Size, right: torch.Size, x: torch.Size, **_: object) -> int:
    return 2 * (left[1] + right[1]) * x.numel()


@register_flop_formula(torch.ops.geoopt_projunn.add_product_)
def _(x: torch.Size, rows: torch.Size, factor: torch.Size, **_: object) -> int:
    return 2 * rows[1] * x.numel()


FLOPS_OF_SKETCH = {"tangent": 16, "lsi": 6, "column": 4}
"""Per rank and entry of the matrix."""


@register_flop_formula(torch.ops.geoopt_projunn.sketch)
def _(x: torch.Size, d: torch.Size, k: int, counter: object, name: str, **_: object) -> int:
    return FLOPS_OF_SKETCH[name] * k * x.numel()


# For a generator as long as there is: seven products of the polynomial and twelve squarings; a
# solve, of an elimination and two triangles, and two products; ten solves.
_OF_CORES = {"exponential": 19 * 2.0, "cayley": 8 / 3 + 2 * 2, "polar": 10 * 8 / 3}


@register_flop_formula(torch.ops.geoopt_projunn.retract)
def _(core: torch.Size, name: str, **__: object) -> int:
    return round(_OF_CORES[name] * core[-1] * core.numel())


@register_flop_formula(torch.ops.geoopt_projunn.turn_)
def _(
    x: torch.Size, rows: torch.Size, delta: torch.Size, sweep: int, *_: object, **__: object
) -> int:
    return 4 * (rows[1] + sweep) * x.numel()
