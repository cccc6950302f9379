"""Whole-matrix functions, O(n³) unless they say otherwise."""

import math

import torch

from .hashing import uniform
from .precision import WIDE
from .rows import IN_TORCH, Products

_PROBES = 4


def skewh(a: torch.Tensor) -> torch.Tensor:
    r"""Return the skew-Hermitian part :math:`\frac12 (a - a^H)`."""
    return (a - a.mH) / 2


def as_batch(a: torch.Tensor) -> torch.Tensor:
    """View matrices (*, n, p) as (b, n, p)."""
    # Not reshape(-1, ...), which cannot be of matrices without entries.
    return a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:])


def length_of(a: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm, (*, 1, 1), float64, whatever the size of the entries."""
    largest = a.abs().amax((-2, -1), keepdim=True).double()
    return largest * torch.linalg.matrix_norm(divided(a, largest), keepdim=True)


def divided(a: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Divide, and return zero for a divisor of zero, which is no negative number."""
    return a / torch.nn.functional.threshold(by, 0.0, torch.inf)


def has_negative_determinant(a: torch.Tensor) -> torch.Tensor:
    """Return whether the determinants of real matrices (*, n, n) are negative, (*).

    The determinants themselves would underflow: those of orthogonal matrices from n = 512 on, in
    float32, for the first pivots are small.
    """
    return torch.linalg.slogdet(a).sign < 0


def estimate_orthogonality_error(x: torch.Tensor) -> torch.Tensor:
    r"""Estimate :math:`\lVert x^H x - I \rVert_F` from four test vectors, in :math:`O(np)`.

    The mean square of :math:`\lVert (x^H x - I) z \rVert` over vectors with independent
    entries of unit variance is the squared Frobenius norm. For x (*, n, p) the result is (*), real;
    not finite where x is not.
    """
    return estimate_errors_of_batch(as_batch(x)).view(x.shape[:-2])


def estimate_errors_of_batch(x: torch.Tensor, products: Products = IN_TORCH) -> torch.Tensor:
    """Estimate them for a batch (b, n, p) that ``products`` multiply."""
    p = x.shape[-1]
    counter = torch.zeros((), dtype=torch.int64, device=x.device)
    rows = (uniform(counter, _PROBES * p) * math.sqrt(3.0)).unflatten(-1, (_PROBES, p))
    rows = rows.to(x.dtype).expand(x.shape[0], -1, -1)
    error = products.times(products.times_adjoint(rows, x), x) - rows
    return torch.linalg.matrix_norm(error) / math.sqrt(_PROBES)


def orthogonality_error(x: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\lVert x^H x - I \rVert_F`, (*), real."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.linalg.matrix_norm(x.mH @ x - eye)


def largest(errors: torch.Tensor) -> torch.Tensor:
    """Return the largest of some errors, zero if there are none: a batch may be empty."""
    return errors.max() if errors.numel() else errors.new_zeros(())


def polar_factor(x: torch.Tensor) -> torch.Tensor:
    r"""Return the matrix with orthonormal columns nearest to ``x`` in Frobenius norm.

    :math:`UV^H` of the singular value decomposition, polished by one Newton-Schulz step
    :math:`y \leftarrow y - \frac12 y (y^H y - I)`, which takes the error of the decomposition
    down to rounding. For x (*, n, p), n >= p.
    """
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    y = u @ vh
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return y - y @ ((y.mH @ y - eye) / 2)


def haar(
    *size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """Draw matrices with orthonormal columns, (*, n, p), n >= p, from the Haar measure.

    The Q factor of a Gaussian matrix, its columns turned by the phases of R's diagonal:
    without that the law depends on the routine's sign convention (Mezzadri, Notices of the
    AMS 54, 2007).
    """
    if len(size) < 2 or size[-2] < size[-1]:
        raise ValueError(f"`size` must be (*, n, p) with n >= p, got {size}; take the transpose.")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in WIDE:
        known = ", ".join(map(str, WIDE))
        raise TypeError(f"`dtype` must be one of {known}, got {dtype}; convert the result.")
    gaussian = torch.randn(*size, dtype=dtype, device=device)
    q, r = torch.linalg.qr(gaussian.to(WIDE[gaussian.dtype]))
    phases = r.diagonal(dim1=-2, dim2=-1).sgn()
    turned = q * torch.where(phases == 0, 1, phases).unsqueeze(-2)
    # The routine returns columns; products with few rows are several times faster with rows.
    return turned.to(gaussian.dtype).contiguous()
