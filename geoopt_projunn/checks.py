"""What points and vectors may be, and what errors say where they are not."""

import math
from typing import Any

import torch
from geoopt.manifolds.base import Manifold
from geoopt.utils import size2shape

from .backends.distributed import is_dtensor
from .linalg.precision import WIDE, full_precision


class CheckedMatrices(Manifold):
    """A manifold of square matrices that checks what it is given.

    Points and vectors have shape (*, n, n), dtype float32, float64, complex64 or complex128.
    """

    ndim = 2

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
            return False, (
                f"`{name}` must have shape (*, n, n), got {tuple(shape)}; for rectangular "
                "matrices use geoopt.Stiefel."
            )
        return True, None

    def check_point(self, x: torch.Tensor, *, explain: bool = False) -> Any:
        """Check dtype and shape of a point."""
        ok, reason = (x.dtype in WIDE), None
        if ok:
            return super().check_point(x, explain=explain)
        reason = dtype_rule("x", x.dtype)
        return (ok, reason) if explain else ok

    def assert_check_point(self, x: torch.Tensor) -> None:
        """Raise TypeError for an unsupported dtype, ValueError for an unsupported shape."""
        if x.dtype not in WIDE:
            raise TypeError(dtype_rule("x", x.dtype))
        super().assert_check_point(x)

    @full_precision
    def _check_point_on_manifold(
        self, x: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in WIDE:
            return False, dtype_rule("x", x.dtype)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        product = x.mH @ x
        if torch.allclose(product, eye.expand_as(product), atol=atol, rtol=rtol):
            return True, None
        worst = float((product - eye).abs().max())
        return False, f"`xᴴx != I` by {worst:.1e} with atol={atol}, rtol={rtol}"

    @full_precision
    def _check_vector_on_tangent(
        self, x: torch.Tensor, u: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if u.dtype != x.dtype:
            return False, same_dtype_rule("u", u, x)
        if u.shape[-2:] != x.shape[-2:]:
            return False, shape_rule("u", u, x)
        product = x.mH @ u
        normal = product + product.mH
        if torch.allclose(normal, torch.zeros_like(normal), atol=atol, rtol=rtol):
            return True, None
        worst = float(normal.abs().max())
        return False, f"`xᴴu + uᴴx != 0` by {worst:.1e} with atol={atol}, rtol={rtol}"

    def _created(self, size: tuple[int, ...], dtype: torch.dtype | None) -> tuple[int, ...]:
        shape: tuple[int, ...] = tuple(size2shape(*size))
        if (dtype or torch.get_default_dtype()) not in WIDE:
            raise TypeError(dtype_rule("dtype", dtype or torch.get_default_dtype()))
        self._assert_check_shape(shape, "size")
        return shape

    def _flatten(self, **tensors: torch.Tensor) -> tuple[list[torch.Tensor], torch.Size]:
        """Check, broadcast and view as (b, n, n), contiguous."""
        x = tensors["x"]
        self.assert_check_point(x)
        for name, tensor in tensors.items():
            if is_dtensor(tensor):
                raise TypeError(
                    f"`{name}` must be whole, got a DTensor; use `{name}.full_tensor()`. Only the "
                    "optimizers of this package, `projx` and the two errors take DTensors."
                )
            if tensor.dtype != x.dtype:
                raise TypeError(same_dtype_rule(name, tensor, x))
            if tensor.shape[-2:] != x.shape[-2:]:
                raise ValueError(shape_rule(name, tensor, x))
        try:
            expanded = torch.broadcast_tensors(*tensors.values())
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
            raise ValueError(
                f"The batch dimensions must broadcast, got {shapes}; make them equal "
                "or 1 where they differ."
            ) from error
        shape = expanded[0].shape
        count = math.prod(shape[:-2])
        return [t.reshape(count, *shape[-2:]).contiguous() for t in expanded], shape


def shape_rule(name: str, tensor: torch.Tensor, x: torch.Tensor) -> str:
    """Say that a vector must have the shape of its point."""
    return (
        f"`{name}` must have shape (*, {x.shape[-2]}, {x.shape[-1]}) like `x`, "
        f"got {tuple(tensor.shape)}."
    )


def same_dtype_rule(name: str, tensor: torch.Tensor, x: torch.Tensor) -> str:
    """Say that a vector must have the dtype of its point."""
    return (
        f"`{name}` must have the dtype of `x`, {x.dtype}, got {tensor.dtype}; "
        f"convert it with `{name}.to({x.dtype})`."
    )


def dtype_rule(name: str, dtype: torch.dtype) -> str:
    """Say which dtypes an argument may have, and what to do instead."""
    known = ", ".join(str(known).removeprefix("torch.") for known in WIDE)
    remedy = (
        "half precision cannot hold orthogonality, keep this parameter in float32"
        if dtype.is_floating_point or dtype.is_complex
        else "convert it with `.to(torch.float32)`"
    )
    return f"`{name}` must have one of the dtypes {known}, got {dtype}; {remedy}."
