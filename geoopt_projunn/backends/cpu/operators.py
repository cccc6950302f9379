"""The kernels as operators of torch: they say their shapes without data and count their flops.

Each checks what its kernel does not look at, and raises :class:`.kernels.Refused` before anything
has changed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.utils.flop_counter import register_flop_formula

from ...linalg.precision import WIDE
from . import kernels
from .kernels import is_by_columns

Pair = tuple[torch.Tensor, torch.Tensor]
Given = tuple[torch.Tensor, tuple[int, ...], torch.dtype]

_library = torch.library.Library("geoopt_projunn", "DEF")


def operator(
    signature: str, without_data: Callable[..., Any], flops: Callable[..., int]
) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator of torch; ``flops`` is given shapes in place of tensors."""

    def made(function: Callable[..., Any]) -> Any:
        name = function.__name__
        _library.define(name + signature)
        _library.impl(name, function, "CPU")
        torch.library.register_fake(f"geoopt_projunn::{name}", without_data)
        packet = getattr(torch.ops.geoopt_projunn, name)
        register_flop_formula(packet)(flops)
        return packet.default

    return made


def _by_rows(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().resolve_conj()


def _matrices(x: torch.Tensor, like: torch.Tensor) -> Given:
    """Return matrices that have to be like others, as they lie, by rows or by columns."""
    b, n, p = like.shape
    return (x.mT, (b, p, n), like.dtype) if is_by_columns(x) else (x, (b, n, p), like.dtype)


def _call(name: str, numbers: tuple[int, ...], *outs: torch.Tensor, **given: Given) -> None:
    """Check what a kernel is given, its matrices first, and call it."""
    address, dtypes = kernels.kernels.address, kernels.DTYPES
    addresses = [address(dtypes, t, key, shape, dtype) for key, (t, shape, dtype) in given.items()]
    addresses += [out.data_ptr() for out in outs]
    kind = kernels.KINDS[next(iter(given.values()))[2]]
    getattr(kernels.kernels, name)(kind, *numbers, torch.get_num_threads(), *addresses)


def _of_both_sides(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor) -> Pair:
    b, n, m = x.shape
    return x.new_empty((b, left.shape[1], m)), x.new_empty((b, right.shape[1], n))


@operator(
    "(Tensor left, Tensor right, Tensor x) -> (Tensor, Tensor)",
    _of_both_sides,
    lambda left, right, x, **_: 2 * (left[1] + right[1]) * x.numel(),
)
def both_sides(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor) -> Pair:
    """Return left @ x and right @ x.mH."""
    (b, n, m), of_left, of_right = x.shape, left.shape[-2], right.shape[-2]
    outs, points = _of_both_sides(left, right, x), (x, (b, n, m), x.dtype)
    lefts = _by_rows(left), (b, of_left, n), x.dtype
    rights = _by_rows(right), (b, of_right, m), x.dtype
    _call("both_sides", (b, n, m, of_left, of_right), *outs, x=points, left=lefts, right=rights)
    return outs


@operator(
    "(Tensor(a!) x, Tensor rows, Tensor factor) -> ()",
    lambda x, rows, factor: None,
    lambda x, rows, factor, **_: 2 * rows[1] * x.numel(),
)
def add_product_(x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
    """Add rows.mH @ factor in place."""
    (b, n, m), r = x.shape, rows.shape[-2]
    left, right = (_by_rows(rows), (b, r, n), x.dtype), (_by_rows(factor), (b, r, m), x.dtype)
    _call("add_product", (b, n, m, r), x=(x, (b, n, m), x.dtype), rows=left, factor=right)
    increment_version([x])


FLOPS_OF_SKETCH = {"tangent": 16, "lsi": 6, "column": 4}
"""Per rank and entry of the matrix."""


def _of_sketch(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor, name: str) -> Pair:
    (b, n, _), wide = x.shape, WIDE[x.dtype]
    return x.new_empty((b, 2 * k, n), dtype=wide), x.new_empty((b, 2 * k, 2 * k), dtype=wide)


@operator(
    "(Tensor x, Tensor d, int k, Tensor counter, str name) -> (Tensor, Tensor)",
    _of_sketch,
    lambda x, d, k, counter, name, **_: FLOPS_OF_SKETCH[name] * k * x.numel(),
)
def sketch(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor, name: str) -> Pair:
    """Return the rows and the core of geoopt_projunn.sketches.SKETCHES[name]."""
    b, n, p = x.shape
    kind = kernels.check_choice("name", name, kernels.SKETCHES)
    numbers = b, n, p, k, kind, is_by_columns(x) + 2 * is_by_columns(d)
    outs, counters = _of_sketch(x, d, k, counter, name), (counter.contiguous(), (b,), torch.int64)
    _call("sketch", numbers, *outs, x=_matrices(x, x), d=_matrices(d, x), counter=counters)
    return outs


# For a generator as long as there is: seven products of the polynomial and twelve squarings; a
# solve, of an elimination and two triangles, and two products; ten solves.
_FLOPS_OF_CORES = {"exponential": 19 * 2.0, "cayley": 8 / 3 + 2 * 2, "polar": 10 * 8 / 3}


@operator(
    "(Tensor core, str name) -> Tensor",
    lambda core, name: torch.empty_like(core, memory_format=torch.contiguous_format),
    lambda core, name, **_: round(_FLOPS_OF_CORES[name] * core[-1] * core.numel()),
)
def retract(core: torch.Tensor, name: str) -> torch.Tensor:
    """Return geoopt_projunn.retractions.RETRACTIONS[name] of a core."""
    core, kind = _by_rows(core), kernels.check_choice("name", name, kernels.RETRACTIONS)
    (b, r, _), delta = core.shape, torch.empty_like(core)
    _call("retract", (b, r, kind), delta, core=(core, (b, r, r), WIDE[core.dtype]))
    return delta


@operator(
    "(Tensor(a!) x, Tensor rows, Tensor delta, int sweep, Tensor counter, Tensor active) -> Tensor",
    lambda x, rows, delta, sweep, counter, active: torch.empty_like(active),
    lambda x, rows, delta, sweep, *_, **__: 4 * (rows[1] + sweep) * x.numel(),
)
def turn_(
    x: torch.Tensor,
    rows: torch.Tensor,
    delta: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    """Do what geoopt_projunn.drift.turn_ does."""
    (b, n, p), r = x.shape, rows.shape[-2]
    turned = active.clone(memory_format=torch.contiguous_format)
    _call(
        "turn",
        (b, n, p, r, sweep, is_by_columns(x)),
        x=_matrices(x, x),
        rows=(_by_rows(rows), (b, r, n), x.dtype),
        delta=(_by_rows(delta), (b, r, r), WIDE[x.dtype]),
        counter=(counter.contiguous(), (b,), torch.int64),
        active=(turned, (b,), torch.bool),
    )
    increment_version([x])
    return turned
