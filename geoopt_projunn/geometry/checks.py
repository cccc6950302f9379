"""What points and vectors may be, and what errors say where they are not."""

import math
from typing import Any

import torch
from geoopt.manifolds.base import Manifold
from geoopt.utils import size2shape

from ..backends.distributed import is_dtensor
from ..linalg.precision import WIDE, full_precision


class CheckedMatrices(Manifold):
    """A manifold of matrices with orthonormal columns or rows that checks what it is given.

    Points and vectors have shape (*, blocks n, p), dtype float32, float64, complex64 or complex128.
    The geometry is that of tall matrices: each block is one, or the transpose of one if n < p.
    """

    ndim = 2
    blocks: int = 1
    """How many matrices lie one above the other in each point."""

    def points(self, x: torch.Tensor) -> torch.Tensor:
        """View a point, or a vector, as tall matrices: (*, n, p), n >= p.

        With several blocks they are the last batch dimension.
        """
        return upright(self.stacked(x))

    def stacked(self, x: torch.Tensor) -> torch.Tensor:
        """View the blocks of a point as the last batch dimension, if there are several."""
        return x if self.blocks == 1 else x.unflatten(-2, (self.blocks, -1))

    def _form(self) -> str:
        """Return what messages call the shape of a point."""
        return "(*, n, p)" if self.blocks == 1 else f"(*, {self.blocks} n, p)"

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < 2 or 0 in shape[-2:] or shape[-2] % self.blocks:
            why = "" if self.blocks == 1 else f", because it stacks {self.blocks} blocks"
            return False, f"`{name}` must have shape {self._form()}{why}, got {tuple(shape)}."
        return True, None

    def check_point(self, x: torch.Tensor, *, explain: bool = False) -> Any:
        """Check dtype and shape of a point."""
        if x.dtype in WIDE:
            return super().check_point(x, explain=explain)
        return (False, dtype_rule("x", x.dtype)) if explain else False

    def assert_check_point(self, x: torch.Tensor) -> None:
        """Raise TypeError for an unsupported dtype, ValueError for an unsupported shape."""
        assert_tensor("x", x)
        if x.dtype not in WIDE:
            raise TypeError(dtype_rule("x", x.dtype))
        super().assert_check_point(x)

    @full_precision
    def _check_point_on_manifold(
        self, x: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in WIDE:
            return False, dtype_rule("x", x.dtype)
        points = self.points(x)
        eye = torch.eye(points.shape[-1], dtype=x.dtype, device=x.device)
        product = points.mH @ points
        if torch.allclose(product, eye.expand_as(product), atol=atol, rtol=rtol):
            return True, None
        worst = float((product - eye).abs().max())
        return False, f"`{self.gram(x)} != I` by {worst:.1e} with atol={atol}, rtol={rtol}"

    def gram(self, x: torch.Tensor) -> str:
        """Return what messages call the product that is the identity for points like x."""
        return "xxᴴ" if x.shape[-2] // self.blocks < x.shape[-1] else "xᴴx"

    @full_precision
    def _check_vector_on_tangent(
        self, x: torch.Tensor, u: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if u.dtype != x.dtype:
            return False, same_dtype_rule("u", u, x)
        if u.shape[-2:] != x.shape[-2:]:
            return False, shape_rule("u", u, x)
        product = self.points(x).mH @ self.points(u)
        normal = product + product.mH
        if torch.allclose(normal, torch.zeros_like(normal), atol=atol, rtol=rtol):
            return True, None
        worst = float(normal.abs().max())
        rule = "xᴴu + uᴴx" if self.gram(x) == "xᴴx" else "xuᴴ + uxᴴ"
        return False, f"`{rule} != 0` by {worst:.1e} with atol={atol}, rtol={rtol}"

    def _created(self, size: tuple[int, ...], dtype: torch.dtype | None) -> tuple[int, ...]:
        shape: tuple[int, ...] = tuple(size2shape(*size))
        if (dtype or torch.get_default_dtype()) not in WIDE:
            raise TypeError(dtype_rule("dtype", dtype or torch.get_default_dtype()))
        self._assert_check_shape(shape, "size")
        return shape

    def _flatten(self, **tensors: torch.Tensor) -> tuple[list[torch.Tensor], torch.Size]:
        """Check, broadcast and view as (b, n, p), n >= p, stored by rows or by columns."""
        for name, tensor in tensors.items():
            assert_tensor(name, tensor)
        x = tensors["x"]
        self.assert_check_point(x)
        for name, tensor in tensors.items():
            if is_dtensor(tensor):
                raise TypeError(
                    f"`{name}` must be whole, got a DTensor; use `{name}.full_tensor()`. Only the "
                    "optimizers of this package, `projx`, `orthogonality_error` and "
                    "`estimate_orthogonality_error` take DTensors."
                )
        assert_like(**tensors)
        try:
            expanded = torch.broadcast_tensors(*tensors.values())
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
            raise ValueError(
                f"The batch dimensions must broadcast, got {shapes}; make them equal "
                "or 1 where they differ."
            ) from error
        shape = expanded[0].shape
        size = self._size(shape)
        return [upright(t.reshape(size).contiguous()) for t in expanded], shape

    def _shaped(self, points: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Undo :meth:`_flatten`; the result is contiguous."""
        size = self._size(shape)
        return (points.mT if size[-2] < size[-1] else points).contiguous().view(shape)

    def _size(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
        count = math.prod(shape[:-2]) * self.blocks
        return count, shape[-2] // self.blocks, shape[-1]


def without_x(reason: Any) -> str:
    """Take `x` out of a message of a manifold, for a user who has called nothing of the kind."""
    return str(reason).replace("`x`", "it")


def upright(x: torch.Tensor) -> torch.Tensor:
    """Return matrices, or the transposes of wide ones."""
    return x.mT if x.shape[-2] < x.shape[-1] else x


def assert_tensor(name: str, value: object) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a tensor, got {type(value).__name__}; convert it with "
            f"`torch.as_tensor({name})`."
        )


def assert_like(x: torch.Tensor, **vectors: torch.Tensor) -> None:
    """Raise an error unless vectors have the dtype and the shape of their point."""
    for name, vector in vectors.items():
        assert_tensor(name, vector)
        if vector.dtype != x.dtype:
            raise TypeError(same_dtype_rule(name, vector, x))
        if vector.shape[-2:] != x.shape[-2:]:
            raise ValueError(shape_rule(name, vector, x))


def shape_rule(name: str, tensor: torch.Tensor, x: torch.Tensor) -> str:
    """Say that a vector must have the shape of its point."""
    return (
        f"`{name}` must have shape (*, {x.shape[-2]}, {x.shape[-1]}) like `x`, "
        f"got {tuple(tensor.shape)}; pass a vector at this very point."
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
