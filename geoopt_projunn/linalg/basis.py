"""Orthonormal bases of a few rows, safe for dependent and zero rows."""

import torch

from .rows import as_real, row_norms

# Rows arrive in float64. A remainder below this fraction of its row is rounding.
_DEPENDENT = 1e-10


def orthonormalize(rows: torch.Tensor) -> torch.Tensor:
    r"""Return orthonormal rows whose span contains that of ``rows``.

    Dependent or zero rows never give NaN: what the input does not determine comes back
    either as a zero row or as some unit row orthogonal to the others. Both are harmless
    to a step, which finds nothing to do there. Non-finite input gives non-finite output.

    Parameters
    ----------
    rows : torch.Tensor
        (*, r, n) with :math:`r \le n`, float64 or complex128

    Returns
    -------
    torch.Tensor
        (*, r, n); its Gram matrix is diagonal with entries 0 or 1, to rounding

    Notes
    -----
    Householder QR on a CPU. Elsewhere block Gram-Schmidt, made of matrix products only: on a
    GPU QR of a batch runs matrix by matrix. One row is divided by its norm on either. None reads
    a value back to the host.
    """
    if rows.shape[-2] == 1:
        return _unit_rows(_of_size_one(rows), 0.0)
    if rows.device.type == "cpu":
        return torch.linalg.qr(rows.mT).Q.mT
    return block_gram_schmidt(rows)


def block_gram_schmidt(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormalize by halves; dependent rows come back as zeros.

    The whole pass runs three times: nearly dependent rows leave the first orthogonal to a few
    digits only, are well conditioned input for the second, and the third ends at rounding.
    """
    rows = _unit_rows(_of_size_one(rows), 0.0)
    for _ in range(3):
        rows = _gram_schmidt_pass(rows)
    return rows


def _of_size_one(rows: torch.Tensor) -> torch.Tensor:
    """Divide each row by its largest entry, for squares leave the range of a dtype early."""
    largest = as_real(rows).abs().amax(-1, keepdim=True)
    return rows / torch.nn.functional.threshold(largest, 0.0, torch.inf)


def _unit_rows(rows: torch.Tensor, floor: float) -> torch.Tensor:
    return rows / torch.nn.functional.threshold(row_norms(rows), floor, torch.inf)


def _gram_schmidt_pass(rows: torch.Tensor) -> torch.Tensor:
    count = rows.shape[-2]
    if count == 1:
        return _unit_rows(rows, _DEPENDENT)
    top = _gram_schmidt_pass(rows[..., : count // 2, :])
    rest = rows[..., count // 2 :, :]
    rest = rest - (rest @ top.mH) @ top
    return torch.cat((top, _gram_schmidt_pass(rest)), dim=-2)
