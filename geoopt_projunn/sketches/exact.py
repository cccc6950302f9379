"""The whole generator of a step, of full rank."""

import torch

from ..linalg.dense import skewh
from ..linalg.precision import WIDE
from ..linalg.rows import is_square
from .sketched import Sketched, above


def exact(x: torch.Tensor, d: torch.Tensor, floor: float = 0.0) -> Sketched:
    r"""Return the whole generator :math:`\operatorname{skewh}(d x^H)`, in :math:`O(n^2 p)`.

    It is zero if it is below ``floor`` times the length of ``d``.
    """
    wide = WIDE[x.dtype]
    return Sketched(None, above(floor, skewh(d.to(wide) @ x.to(wide).mH), d))


def exact_tangent(x: torch.Tensor, u: torch.Tensor) -> Sketched:
    """Return the whole generator of a tangent vector, see :func:`.linalg.rows.tangent_rows`."""
    if is_square(x):
        return exact(x, u)
    wide = WIDE[x.dtype]
    x, u = x.to(wide), u.to(wide)
    return Sketched(None, 2 * skewh((u - x @ (x.mH @ u) / 2) @ x.mH))
