"""Products of a few rows with large matrices.

A thin matrix :math:`A` of shape (n, k) is stored as its adjoint, ``rows`` of shape
(k, n), contiguous: on a CPU ``rows @ x`` and ``rows @ x.mT`` stream over ``x`` at memory
speed, where ``x.mT @ A`` can be an order of magnitude slower.

All is in batches with one batch dimension: for small matrices torch.bmm costs half as much as
torch.matmul, which has to find out what it is given.
"""

import torch

# Measured on a CPU in float32: from n = 512 on, one general product of inner size 2 or 4 is two
# to four times slower than as many rank-one updates. Below, and from inner size 8, it is faster.
_MOST_RANK_ONE_UPDATES = 4
_RANK_ONE_FROM_SIZE = 512
# In batches the complex product of inner size 2, and of no other, is slower than the real one of
# inner size 4: 1.6 times for matrices of size 16 to 224 in complex64.
_REAL_RANK = 2
_REAL_FROM_BATCH = 8


class Products:
    """Products of a few rows with large matrices, in torch's operations.

    A backend may have better ones.
    """

    def times(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x``, (b, k, m), for rows (b, k, n) and x (b, n, m)."""
        return torch.bmm(rows, x)

    def times_adjoint(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x.mH``, (b, k, n), for rows (b, k, m) and x (b, n, m)."""
        # A lazily conjugated x would be copied as a whole by the batched product.
        return torch.bmm(rows.conj(), x.mT).conj()

    def both_sides(
        self, left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``left @ x`` and ``right @ x.mH``."""
        return self.times(left, x), self.times_adjoint(right, x)

    def rows_at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return some rows of x, (b, count, m), for x (b, n, m) and an index (b, count)."""
        return x.gather(-2, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def columns_at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the adjoint of some columns of x, (b, count, n)."""
        return x.gather(-1, index.unsqueeze(-2).expand(-1, x.shape[-2], -1)).mH

    def set_columns_(self, x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace columns of x in place; ``rows`` is their adjoint, (b, count, n)."""
        if x.is_complex() and x.is_conj():
            self.set_columns_(x.conj(), index, rows.conj())
        else:
            x.scatter_(-1, index.unsqueeze(-2).expand(-1, x.shape[-2], -1), rows.mH)

    def squared_column_norms(self, x: torch.Tensor) -> torch.Tensor:
        """Return the squared norm of every column, (b, m), float64; nothing of x's size is created.

        In float64 no entry of float32 overflows or underflows; and torch's norm along columns is
        thirty times slower than along rows.
        """
        total = x.new_zeros((*x.shape[:-2], x.shape[-1]), dtype=torch.float64)
        for part in x.split(max(1, x.shape[-2] // 16), dim=-2):
            squares = part.real.double().square()
            if x.is_complex():
                squares += part.imag.double().square()
            total += squares.sum(-2)
        return total

    def add_product_(self, x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
        r"""Add :math:`\text{rows}^H \text{factor}` to ``x`` in place; neither may overlap it.

        Parameters
        ----------
        x : torch.Tensor
            (b, n, p), changed in place
        rows, factor : torch.Tensor
            (b, r, n) and (b, r, p)
        """
        if x.is_complex() and x.is_conj():
            # Torch's own update gets the place or the result of such a view wrong.
            self.add_product_(x.conj(), rows.conj(), factor.conj())
            return
        rank = rows.shape[-2]
        if _is_faster_real(x, rank):
            # With rows = u + iv, rowsᴴ factor is uᵀ factor - i vᵀ factor.
            rows = torch.cat((rows.real, rows.imag), dim=-2)
            factor = torch.view_as_real(torch.cat((factor, -1j * factor), dim=-2)).flatten(-2)
            torch.view_as_real(x).flatten(-2).baddbmm_(rows.mT, factor)
            return
        left = rows.mH
        one_by_one = (
            x.device.type == "cpu"
            and x.shape[-1] >= _RANK_ONE_FROM_SIZE
            and rank <= _MOST_RANK_ONE_UPDATES
        )
        width = 1 if one_by_one else rank
        for start in range(0, rank, width):
            part = slice(start, start + width)
            x.baddbmm_(left[..., part], factor[..., part, :])


IN_TORCH = Products()


def generator_rows(
    rows: torch.Tensor, x: torch.Tensor, d: torch.Tensor, products: Products = IN_TORCH
) -> torch.Tensor:
    r"""Apply the generator of a step to a thin matrix.

    With :math:`\Omega = \operatorname{skewh}(d x^H) = \frac12 (d x^H - x d^H)` and
    ``rows`` :math:`= A^H`, return :math:`(\Omega A)^H = \frac12 (A^H x\, d^H - A^H d\, x^H)`.

    Parameters
    ----------
    rows : torch.Tensor
        (b, k, n), the adjoint of :math:`A`
    x, d : torch.Tensor
        (b, n, p), a point and an ambient direction

    Returns
    -------
    torch.Tensor
        (b, k, n)

    Notes
    -----
    :math:`8knp` flops, two passes over ``x`` and one over ``d``, or two by torch's own products.
    """
    back, forth = generator_parts(rows, x, d, products)
    return (back - forth) / 2


def generator_parts(
    rows: torch.Tensor, x: torch.Tensor, d: torch.Tensor, products: Products = IN_TORCH
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return :math:`A^H x\, d^H` and :math:`A^H d\, x^H`, arguments as :func:`generator_rows`."""
    along, back = products.both_sides(rows, products.times(rows, x), d)
    return back, products.times_adjoint(along, x)


def tangent_rows(
    rows: torch.Tensor, x: torch.Tensor, u: torch.Tensor, products: Products = IN_TORCH
) -> torch.Tensor:
    r"""Apply the generator of a tangent vector to a thin matrix.

    The generator of :math:`u` is the skew-Hermitian matrix with :math:`\Omega x = u` that
    vanishes on the orthogonal complement of :math:`x`, :math:`\Omega = u x^H - x u^H - x
    \operatorname{skewh}(x^H u)\, x^H`. It takes no notice of a normal part of :math:`u`. Of a
    square x it is :math:`\operatorname{skewh}(u x^H)`, that of :func:`generator_rows`.

    Arguments and result as there; for n > p :math:`14knp` flops, four passes over ``x`` and two
    over ``u``.
    """
    if is_square(x):
        return generator_rows(rows, x, u, products)
    inside = products.times(rows, x)
    along, back = products.both_sides(rows, inside, u)
    projected = products.times(products.times_adjoint(inside, x), u)
    skew = (projected - products.times(back, x)) / 2
    return back - products.times_adjoint(along - skew, x)


def row_norms(rows: torch.Tensor) -> torch.Tensor:
    """Return the norm of every row, (*, k, 1), real.

    Without torch's own norm, which is ten times slower on a CPU, thirty times for complex rows. It
    has no derivative at zero rows, and ends where squares leave the range of the dtype.
    """
    return as_real(rows).square().sum(-1, keepdim=True).sqrt()


def as_real(rows: torch.Tensor) -> torch.Tensor:
    """Return complex rows as real ones twice as long, with both parts of an entry side by side."""
    return torch.view_as_real(rows.resolve_conj()).flatten(-2) if rows.is_complex() else rows


def materialized(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is contiguous and not conjugated or negated lazily; itself if it is."""
    return t.resolve_conj().resolve_neg().contiguous()


def is_materialized(t: torch.Tensor) -> bool:
    """Return whether a tensor is contiguous and not conjugated or negated lazily."""
    return t.is_contiguous() and not t.is_conj() and not t.is_neg()


def is_square(x: torch.Tensor) -> bool:
    """Return whether matrices have as many columns as rows."""
    return x.shape[-2] == x.shape[-1]


def _is_faster_real(x: torch.Tensor, rank: int) -> bool:
    return (
        x.device.type == "cpu"
        and x.is_complex()
        and not x.is_conj()
        and x.stride(-1) == 1
        and x.shape[-1] < _RANK_ONE_FROM_SIZE
        and x.shape[0] >= _REAL_FROM_BATCH
        and rank == _REAL_RANK
    )
