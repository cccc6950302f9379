"""The paper's two sketches, of the gradient in the ambient space."""

import torch

from ..linalg.basis import orthonormalize
from ..linalg.hashing import uniform
from ..linalg.precision import WIDE
from ..linalg.rows import IN_TORCH, Products
from .sketched import Sketched, above, test_rows


def lsi(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the ambient direction on random rows (the paper's LSI).

    :math:`D \approx (DV) V^H` with :math:`V = \operatorname{orth}(D^H H)`, :math:`H` a random
    n x k matrix, a new one at each step. What it keeps of a gradient with a large normal part
    need not descend.

    Parameters as in :func:`.tangent.tangent`.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2.

    Notes
    -----
    Two passes over ``d`` and one over ``x``.
    """
    rows = products.times(test_rows(x, k, counter, x.shape[-2]), d)
    v = orthonormalize(rows.to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, products.times_adjoint(v, d), v, products, floor)


def column(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the ambient direction on k of its columns (the paper's column sampling).

    :math:`D \approx U (U^H D)`, :math:`U` an orthonormal basis of k columns drawn without
    replacement with probabilities proportional to their squared norms. As with :func:`lsi` the
    step need not descend.

    Parameters as in :func:`.tangent.tangent`.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2. Drawing by perturbed keys: Gumbel-top-k.

    Notes
    -----
    Three passes over ``d`` and one over ``x``.
    """
    p = x.shape[-1]
    draws = (uniform(counter, p) + 1) / 2
    keys = products.squared_column_norms(d).log() - (-draws.log()).log()
    chosen = keys.topk(k).indices
    columns = products.columns_at(d, chosen)
    u = orthonormalize(columns.to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, u, products.times(u, d), products, floor)


def _ambient(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, products: Products, floor: float
) -> Sketched:
    r"""Express :math:`a b^H x^H` (rows :math:`a^H`, :math:`b^H`) in the basis orth[a, xb].

    With the polar retraction of ``I + core`` this is, for a square x, the matrix nearest to
    :math:`x + ab^H`.
    """
    wide = WIDE[x.dtype]
    left, right = a.to(wide), products.times_adjoint(b, x).to(wide)
    rows = orthonormalize(torch.cat((left, right), dim=-2))
    core = (rows @ left.mH) @ (rows @ right.mH).mH
    return Sketched(rows, above(floor, core, core))
