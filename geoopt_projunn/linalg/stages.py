r"""Whole stages of a step, one operator of torch each, where the extension serves.

Between its passes over the matrices a step is made of a hundred operations on a few rows, and
for small matrices launching them is nearly all of its time. Each operator does what the function
of its name does by torch's own operations, which remain for all that it does not serve.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import batch, extension
from .batch import Pieces
from .extension import Refused, check, is_plain
from .precision import WIDE

RETRACTIONS = ("exponential", "cayley", "polar")
"""Those that the kernels know, in their order."""
# Above, the blocked factorizations that torch calls orthonormalize faster.
_MOST_VECTORS = 32


def serve(x: torch.Tensor) -> bool:
    """Return whether :data:`turn_` takes a point, (b, n, n), to be changed in place."""
    return extension.serves(x) and (is_plain(x) or is_plain(x.mT))


def serve_sketch(x: torch.Tensor, d: torch.Tensor, k: int) -> bool:
    """Return whether the sketches take a point and a direction, both (b, n, n)."""
    return (
        serve(x)
        and k <= min(_MOST_VECTORS, x.shape[-1] // 2)
        and d.dtype == x.dtype
        and (is_plain(d) or is_plain(d.mT))
    )


def serve_cores(core: torch.Tensor) -> bool:
    """Return whether :data:`retract` takes cores, (b, r, r)."""
    is_wide = WIDE.get(core.dtype) == core.dtype
    return is_wide and extension.serves(core) and core.shape[-1] <= 2 * _MOST_VECTORS


_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define("tangent(Tensor x, Tensor d, int k, Tensor counter) -> (Tensor, Tensor)")
_library.define("lsi(Tensor x, Tensor d, int k, Tensor counter) -> (Tensor, Tensor)")
_library.define("retract(Tensor core, str name) -> Tensor")
_library.define(
    "turn_(Tensor(a!) x, Tensor rows, Tensor delta, int sweep, Tensor counter, Tensor active)"
    " -> Tensor"
)

tangent = torch.ops.geoopt_projunn.tangent.default
"""geoopt_projunn.sketches.tangent, its rows and core"""
lsi = torch.ops.geoopt_projunn.lsi.default
"""geoopt_projunn.sketches.lsi, its rows and core"""
retract = torch.ops.geoopt_projunn.retract.default
"""geoopt_projunn.retractions.RETRACTIONS[name], one of :data:`RETRACTIONS`"""
turn_ = torch.ops.geoopt_projunn.turn_.default
"""geoopt_projunn.drift.turn_"""


def check_stored(pieces: Pieces, name: str, b: int, n: int, dtype: torch.dtype) -> bool:
    """Check a batch of square matrices; return whether they are stored by columns."""
    first = pieces[0]
    shape, strides = first.shape, first.stride()
    by_columns = not is_plain(first) and is_plain(first.mT)
    check(first.mT if by_columns else first, name, (*shape[:-2], n, n), dtype)
    for piece in pieces[1:]:
        if piece.shape != shape or piece.stride() != strides or piece.dtype != dtype:
            raise Refused(
                f"`{name}` must be tensors of one shape, strides and dtype, got {tuple(shape)}, "
                f"{strides} and {dtype}, and {tuple(piece.shape)}, {piece.stride()} and "
                f"{piece.dtype}."
            )
    if batch.count(pieces) != b:
        raise Refused(f"`{name}` must be {b} matrices, got {batch.count(pieces)}.")
    return by_columns


def check_rank(n: int, k: int) -> None:
    """Refuse a rank that a step of matrices of size n cannot have."""
    if not 1 <= k <= n // 2:
        raise ValueError(f"`k` must be between 1 and n / 2 = {n // 2}, got {k}.")


def check_sweep(n: int, sweep: int) -> None:
    """Refuse to sweep other than 0 to n columns."""
    if not 0 <= sweep <= n:
        raise ValueError(f"`sweep` must be between 0 and n = {n}, got {sweep}.")


def _sketch(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor, is_lsi: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, _ = x.shape
    counter = counter.contiguous()
    check_rank(n, k)
    by_columns = check_stored([x], "x", b, n, x.dtype) + 2 * check_stored([d], "d", b, n, x.dtype)
    check(counter, "counter", (b,), torch.int64)
    rows, core = _shapes_of_sketch(x, d, k, counter)
    numbers = extension.KINDS[x.dtype], b, n, k, is_lsi, by_columns, torch.get_num_threads()
    extension.kernels.sketch(*numbers, *_addresses(x, d, counter, rows, core))
    return rows, core


def _tangent(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _sketch(x, d, k, counter, is_lsi=False)


def _lsi(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _sketch(x, d, k, counter, is_lsi=True)


def number_of(retraction: str) -> int:
    """Return what the kernels call a retraction."""
    if retraction not in RETRACTIONS:
        raise ValueError(f"`retraction` must be one of {RETRACTIONS}, got {retraction!r}.")
    return RETRACTIONS.index(retraction)


def _retract(core: torch.Tensor, name: str) -> torch.Tensor:
    core = core.contiguous()
    b, r, _ = core.shape
    check(core, "core", (b, r, r), WIDE[core.dtype])
    delta = torch.empty_like(core)
    numbers = extension.KINDS[core.dtype], number_of(name), b, r
    extension.kernels.retract(*numbers, *_addresses(core, delta))
    return delta


def _turn_(
    x: torch.Tensor,
    rows: torch.Tensor,
    delta: torch.Tensor,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    (b, n, _), r = x.shape, rows.shape[-2]
    turned = active.clone(memory_format=torch.contiguous_format)
    rows, delta, counter = rows.contiguous(), delta.contiguous(), counter.contiguous()
    by_columns = check_stored([x], "x", b, n, x.dtype)
    check(rows, "rows", (b, r, n), x.dtype)
    check(delta, "delta", (b, r, r), WIDE[x.dtype])
    check(counter, "counter", (b,), torch.int64)
    check(turned, "active", (b,), torch.bool)
    check_sweep(n, sweep)
    numbers = extension.KINDS[x.dtype], b, n, r, sweep, by_columns, torch.get_num_threads()
    extension.kernels.turn(*numbers, *_addresses(x, rows, delta, counter, turned))
    # What autograd has saved must not change unnoticed.
    torch.autograd.graph.increment_version(x)
    return turned


def _addresses(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _shapes_of_sketch(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, _ = x.shape
    wide = WIDE[x.dtype]
    return x.new_empty((b, 2 * k, n), dtype=wide), x.new_empty((b, 2 * k, 2 * k), dtype=wide)


_library.impl("tangent", _tangent, "CPU")
_library.impl("lsi", _lsi, "CPU")
_library.impl("retract", _retract, "CPU")
_library.impl("turn_", _turn_, "CPU")

torch.library.register_fake(tangent, _shapes_of_sketch)
torch.library.register_fake(lsi, _shapes_of_sketch)
torch.library.register_fake(
    retract, lambda core, name: torch.empty_like(core, memory_format=torch.contiguous_format)
)
torch.library.register_fake(
    turn_, lambda x, rows, delta, sweep, counter, active: torch.empty_like(active)
)


@register_flop_formula(torch.ops.geoopt_projunn.tangent)
def _(x: torch.Size, d: torch.Size, k: int, *_: object, **__: object) -> int:
    return 16 * k * x.numel()


@register_flop_formula(torch.ops.geoopt_projunn.lsi)
def _(x: torch.Size, d: torch.Size, k: int, *_: object, **__: object) -> int:
    return 6 * k * x.numel()


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
