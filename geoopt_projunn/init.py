r"""Unitary matrices to start from.

Each function takes a shape (*, n, n), any number of batch dimensions, a dtype and a device, and
returns matrices that are orthogonal for a real dtype and unitary for a complex one, to rounding.
"""

import math
from collections.abc import Callable

import torch

from .linalg.dense import haar

__all__ = ["INITS", "cayley", "haar", "henaff", "identity"]


def henaff(
    *size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    r"""Rotate n / 2 planes by angles drawn uniformly from :math:`(-\pi, \pi)`.

    Real: 2 × 2 rotations on the diagonal, and a 1 at the end for odd n. Complex: a diagonal of
    n phases from the same law. No step is needed to reach any frequency, and none is preferred.

    References
    ----------
    Henaff, Szlam, LeCun, *Recurrent Orthogonal Networks and Long-Memory Tasks*,
    arXiv:1602.06662.
    """
    return _rotations(size, math.pi, dtype, device)


def cayley(
    *size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    r"""Rotate n / 2 planes by angles drawn uniformly from :math:`(0, \pi / 2)`.

    The Cayley transform :math:`(I + A)^{-1} (I - A)` of the skew-symmetric A with blocks
    :math:`\pm s`, :math:`s = \sqrt{(1 - \cos t) / (1 + \cos t)} = \tan(t / 2)`, is the rotation
    by t. A rotation by t has the eigenvalues :math:`e^{\pm it}`; the complex form is a
    diagonal of phases from :math:`(-\pi / 2, \pi / 2)`, the same spectrum.

    References
    ----------
    Helfrich, Willmott, Ye, *Orthogonal Recurrent Neural Networks with Scaled Cayley Transform*,
    arXiv:1707.09520.
    """
    return _rotations(size, math.pi / 2, dtype, device)


def identity(
    *size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return identity matrices."""
    return torch.eye(_square(size)[-1], dtype=dtype, device=device).expand(size).contiguous()


def _square(size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) < 2 or size[-2] != size[-1]:
        raise ValueError(
            f"`size` must be (*, n, n), got {size}; take `haar` for rectangular matrices."
        )
    return size


def _rotations(
    size: tuple[int, ...],
    largest: float,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> torch.Tensor:
    *batch, n, _ = _square(size)
    dtype = dtype or torch.get_default_dtype()
    if dtype.is_complex:
        angles = (2 * torch.rand(*batch, n, dtype=dtype.to_real(), device=device) - 1) * largest
        return torch.diag_embed(torch.polar(torch.ones_like(angles), angles))
    planes = n // 2
    angles = (2 * torch.rand(*batch, planes, dtype=dtype, device=device) - 1) * largest
    if largest <= math.pi / 2:
        angles = angles.abs()
    diagonal = torch.ones(*batch, n, dtype=dtype, device=device)
    diagonal[..., : 2 * planes] = angles.cos().repeat_interleave(2, -1)
    below = torch.zeros(*batch, max(n - 1, 0), dtype=dtype, device=device)
    below[..., 0 : 2 * planes : 2] = angles.sin()
    return torch.diag_embed(diagonal) + torch.diag_embed(below, -1) - torch.diag_embed(below, 1)


INITS: dict[str, Callable[..., torch.Tensor]] = {
    "henaff": henaff,
    "cayley": cayley,
    "identity": identity,
    "haar": haar,
}
"""The initial matrices that modules know by name."""
