r"""Steps that turn a few coordinates: the only ones that do not read all of the gradient."""

import torch

from ..linalg.dense import skewh
from ..linalg.hashing import uniform
from ..linalg.precision import WIDE
from ..linalg.rows import IN_TORCH, Products
from ..rotation import Rotation
from .sketched import Sketched, above

COORDINATES = "coordinates"
"""What the sketch is called. It is not in :data:`geoopt_projunn.sketches.SKETCHES`, whose sketches
see all of a direction."""


def coordinates(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch what a step along d does to 2k coordinates.

    :math:`W` consists of 2k rows :math:`S` of the identity, drawn without replacement by the hash
    of the step's number, and :math:`K = \operatorname{skewh}(D_S x_S^H) = \Omega_{SS}`: the step
    rotates rows :math:`S` of x. On average over :math:`S` it keeps a share of about
    :math:`4k^2 / n^2` of :math:`\lVert \Omega \rVert^2`: cheap steps, and many of them. They pay
    where n is huge and rows of the gradient are made one by one; where the gradient is there
    anyway, the tangent sketch gets further in the same time.

    Parameters as in :func:`geoopt_projunn.sketches.tangent`.

    Notes
    -----
    It reads 2k rows of ``x`` and of ``d`` and nothing else: :math:`8k^2 p` flops. What is not
    finite in other rows of ``d`` is not seen.

    References
    ----------
    Choromanski et al., *Stochastic Flows and Geometric Optimization on the Orthogonal Group*,
    arXiv:2003.13563. Later work calls such steps random submanifold descent (RSDM).
    """
    index = chosen(x, k, counter)
    wide = WIDE[x.dtype]
    own, along = (products.rows_at(t, index).to(wide) for t in (x, d))
    product = torch.bmm(along, own.mH)
    rows = torch.zeros(*index.shape, x.shape[-2], dtype=wide, device=x.device)
    rows = rows.scatter(-1, index.unsqueeze(-1), 1)
    return Sketched(rows, above(floor, skewh(product), product))


def chosen(x: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    """Draw 2k different coordinates for each point (b, n, p), (b, 2k)."""
    return uniform(counter, x.shape[-2]).topk(2 * k).indices


def turn_coordinates_(
    x: torch.Tensor,
    rotation: Rotation,
    index: torch.Tensor,
    active: torch.Tensor,
    products: Products = IN_TORCH,
) -> torch.Tensor:
    """Rotate some rows of x, in place, and read no others.

    Parameters
    ----------
    x : torch.Tensor
        (b, n, p), changed in place
    rotation : Rotation
        whose rows are those of the identity
    index : torch.Tensor
        (b, r), which rows
    active : torch.Tensor
        (b,), bool; where it is False, or the rotation is not finite, x stays as it is, bit for bit

    Returns
    -------
    torch.Tensor
        (b,), bool; where x was turned
    """
    finite = active & torch.isfinite(rotation.delta.sum((-2, -1)))
    delta = rotation.where(finite).delta
    rows = products.rows_at(x, index)
    turned = rows + torch.bmm(delta, rows.to(delta.dtype)).to(rows.dtype)
    # The rows of x are the columns of its transpose.
    products.set_columns_(x.mT, index, turned.conj())
    return finite
