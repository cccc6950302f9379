r"""Products of a few rows with large matrices that read each matrix once.

Where the rows are few, reading the matrices is all the work, and BLAS reads one for each row
and each side. The kernels read it once. These are operators of torch: flops are counted, and
torch.compile takes them as they are.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import extension

# Below, calling costs more than reading once saves.
_FROM_BYTES = 2**18


def serve(x: torch.Tensor) -> bool:
    """Return whether the products of this module take ``x``, (b, n, m), and gain by it.

    They take it as it is if it is contiguous, and its transpose if that is.
    """
    return (
        extension.serves(x)
        and x.numel() * x.element_size() >= _FROM_BYTES
        and (x.is_contiguous() or x.mT.is_contiguous())
    )


_library = torch.library.Library("geoopt_projunn", "DEF")
_library.define("times(Tensor rows, Tensor x) -> Tensor")
_library.define("times_adjoint(Tensor rows, Tensor x) -> Tensor")
_library.define("both_sides(Tensor left, Tensor right, Tensor x) -> (Tensor, Tensor)")
_library.define("add_product_(Tensor(a!) x, Tensor rows, Tensor factor) -> ()")

times = torch.ops.geoopt_projunn.times.default
"""rows @ x"""
times_adjoint = torch.ops.geoopt_projunn.times_adjoint.default
"""rows @ x.mH"""
both_sides = torch.ops.geoopt_projunn.both_sides.default
"""left @ x and right @ x.mH"""
add_product_ = torch.ops.geoopt_projunn.add_product_.default
"""x += rows.mH @ factor, in place"""


def _plain(x: torch.Tensor, name: str, rows: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rows, (b, k, size), as they must lie in memory; what reads them does not look."""
    if x.dtype not in extension.KINDS or not x.is_contiguous():
        raise ValueError(
            f"`x` must be contiguous and of single or double precision, got {x.dtype} with strides "
            f"{x.stride()}; use the functions of `geoopt_projunn.linalg.rows`, which take both."
        )
    if rows.dtype != x.dtype or rows.device != x.device:
        raise ValueError(
            f"`{name}` must have the dtype and device of `x`, {x.dtype} on {x.device}, got "
            f"{rows.dtype} on {rows.device}; convert it."
        )
    if rows.dim() != 3 or rows.shape[0] != x.shape[0] or rows.shape[2] != size:
        raise ValueError(
            f"`{name}` must have shape ({x.shape[0]}, k, {size}) for `x` of shape "
            f"{tuple(x.shape)}, got {tuple(rows.shape)}; rows are the second dimension."
        )
    return rows.contiguous()


def _times(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    b, n, m = x.shape
    rows = _plain(x, "rows", rows, n)
    out = x.new_empty((b, rows.shape[1], m))
    _read(x, (rows.shape[1], 0), rows.data_ptr(), 0, out.data_ptr(), 0)
    return out


def _times_adjoint(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    b, n, m = x.shape
    rows = _plain(x, "rows", rows, m)
    out = x.new_empty((b, rows.shape[1], n))
    _read(x, (0, rows.shape[1]), 0, rows.data_ptr(), 0, out.data_ptr())
    return out


def _both_sides(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    b, n, m = x.shape
    left, right = _plain(x, "left", left, n), _plain(x, "right", right, m)
    counts = left.shape[1], right.shape[1]
    outs = x.new_empty((b, counts[0], m)), x.new_empty((b, counts[1], n))
    _read(x, counts, *(tensor.data_ptr() for tensor in (left, right, *outs)))
    return outs


def _read(
    x: torch.Tensor, counts: tuple[int, int], left: int, right: int, out_left: int, out_right: int
) -> None:
    (b, n, m), kind, threads = x.shape, extension.KINDS[x.dtype], torch.get_num_threads()
    addresses = x.data_ptr(), left, right, out_left, out_right
    extension.kernels.both_sides(kind, b, n, m, *counts, threads, *addresses)


def _add_product_(x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
    b, n, m = x.shape
    rows, factor = _plain(x, "rows", rows, n), _plain(x, "factor", factor, m)
    if rows.shape[1] != factor.shape[1]:
        raise ValueError(
            f"`rows` and `factor` must have as many rows, got {rows.shape[1]} and "
            f"{factor.shape[1]}; each row of one belongs to a row of the other."
        )
    extension.kernels.add_product(
        *(extension.KINDS[x.dtype], b, n, m, rows.shape[1], torch.get_num_threads()),
        *(x.data_ptr(), rows.data_ptr(), factor.data_ptr()),
    )
    # What autograd has saved must not change unnoticed.
    torch.autograd.graph.increment_version(x)


_library.impl("times", _times, "CPU")
_library.impl("times_adjoint", _times_adjoint, "CPU")
_library.impl("both_sides", _both_sides, "CPU")
_library.impl("add_product_", _add_product_, "CPU")


def _shape_of_times(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return rows.new_empty((*rows.shape[:2], x.shape[2]))


def _shape_of_times_adjoint(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return rows.new_empty((*rows.shape[:2], x.shape[1]))


def _shapes_of_both_sides(
    left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _shape_of_times(left, x), _shape_of_times_adjoint(right, x)


torch.library.register_fake(times, _shape_of_times)
torch.library.register_fake(times_adjoint, _shape_of_times_adjoint)
torch.library.register_fake(both_sides, _shapes_of_both_sides)
torch.library.register_fake(add_product_, lambda x, rows, factor: None)


@register_flop_formula([torch.ops.geoopt_projunn.times, torch.ops.geoopt_projunn.times_adjoint])
def _(rows: torch.Size, x: torch.Size, **_: object) -> int:
    return 2 * rows[1] * x.numel()


@register_flop_formula(torch.ops.geoopt_projunn.both_sides)
def _(left: torch.Size, right: torch.Size, x: torch.Size, **_: object) -> int:
    return 2 * (left[1] + right[1]) * x.numel()


@register_flop_formula(torch.ops.geoopt_projunn.add_product_)
def _(x: torch.Size, rows: torch.Size, factor: torch.Size, **_: object) -> int:
    return 2 * rows[1] * x.numel()
