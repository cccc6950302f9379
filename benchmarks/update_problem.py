"""What every method of the update benchmark starts from: a point and a gradient."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH = 0.1
"""Of lr * gradient, in the Frobenius norm."""
COLUMNS = 64
"""Of the data: the rank of the gradient is at most this."""


@dataclass(frozen=True)
class Problem:
    """A point x and the gradient d of ½‖xA − B‖², scaled to length one; (*, n, p), n >= p."""

    x: Tensor
    d: Tensor

    @property
    def n(self) -> int:
        return self.x.shape[-2]

    @property
    def bytes_of_pass(self) -> int:
        """Bytes that one pass moves, which reads x, or writes it."""
        return self.x.numel() * self.x.element_size()


def draw(
    n: int,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    p: int | None = None,
) -> Problem:
    """Draw a problem, in O(n²): a factorization would take longer than what is measured."""
    p = n if p is None else p
    x = _unitary(n, batch, dtype, device)[..., :p].contiguous()
    a, b = (
        torch.randn(*batch, rows, min(p, COLUMNS), dtype=dtype, device=device) for rows in (p, n)
    )
    d = (x @ a - b) @ a.mH
    return Problem(x, d.div_(torch.linalg.matrix_norm(d)[..., None, None]))


def _unitary(n: int, batch: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Return the Hartley matrix, or the Fourier matrix, with random signs of rows and columns."""
    index = torch.arange(n, device=device)
    angle = torch.outer(index, index).remainder_(n).double().mul_(2 * math.pi / n)
    sine, x = angle.sin(), angle.cos_()
    x = torch.complex(x, sine) if dtype.is_complex else x.add_(sine)
    x = x.div_(math.sqrt(n)).to(dtype)
    rows, columns = (
        torch.randint(0, 2, (*batch, n), device=device).mul_(2).sub_(1).to(x.real.dtype)
        for _ in range(2)
    )
    return x * rows[..., None] * columns[..., None, :]
