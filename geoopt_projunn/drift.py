r"""Drift control: keep rounding from adding up, in :math:`O(np)` a step."""

import torch

from .linalg.hashing import in_turn
from .linalg.rows import IN_TORCH, Products, row_norms
from .rotation import Rotation

CONVERGES = 0.1


def turn_(
    x: torch.Tensor,
    rotation: Rotation,
    sweep: int,
    counter: torch.Tensor,
    active: torch.Tensor,
    products: Products = IN_TORCH,
) -> torch.Tensor:
    r"""Rotate x and sweep some of its columns, in place.

    Parameters
    ----------
    x : torch.Tensor
        (b, n, p), changed in place
    rotation : Rotation
        what x is multiplied with from the left
    sweep : int
        how many columns, for :func:`sweep_columns_`
    counter : torch.Tensor
        (b,), int64, the number of the step
    active : torch.Tensor
        (b,), bool; where it is False, or the rotation is not finite, x stays as it is, bit for bit
    products : Products
        how to multiply a few rows with ``x``

    Returns
    -------
    torch.Tensor
        (b,), bool; where x was turned

    Notes
    -----
    Four passes over x, two of them for the sweep.
    """
    finite = active & rotation.is_finite()
    rotation.where(finite).apply_(x, products)
    if sweep:
        sweep_columns_(x, sweep, counter, finite, products)
    return finite


def sweep_columns_(
    x: torch.Tensor,
    count: int,
    counter: torch.Tensor,
    active: torch.Tensor,
    products: Products = IN_TORCH,
) -> None:
    r"""Orthonormalize the next few columns of x against all others, in place.

    For the columns :math:`C` whose turn it is, :math:`E = x^H C - I_C` and
    :math:`C \leftarrow C - xE + \frac12 C E_C`, :math:`E_C` the rows of :math:`E` that belong
    to :math:`C`. To first order this removes every error that involves :math:`C`.

    Parameters
    ----------
    x : torch.Tensor
        (b, n, p), changed in place
    count : int
        how many columns; a column's turn comes every p / count steps
    counter : torch.Tensor
        (b,), int64, the number of the step
    active : torch.Tensor
        (b,), bool; where it is False x stays as it is, bit for bit. It also does where the
        error of the columns is above 0.1, too far for the correction to converge

    Notes
    -----
    Two passes over x. Without it the rounding of x in float32 drifts as the square root of
    the number of steps; with it ``‖xᴴx − I‖`` stays bounded for ever.
    """
    p = x.shape[-1]
    turn = in_turn(counter, count, p)
    rows = products.columns_at(x, turn).contiguous()
    product = products.times(rows, x)
    own = turn.unsqueeze(-1)
    # Not scatter_add, which has no deterministic kernel on every device.
    error = product.scatter(-1, own, product.gather(-1, own) - 1)
    within = error.gather(-1, turn.unsqueeze(-2).expand(-1, count, -1))
    mended = torch.baddbmm(rows - products.times_adjoint(error, x), within, rows, alpha=0.5)
    # Far from the manifold, where a parameter was overwritten, the correction would diverge.
    # torch 2.8 compiles no negative dimensions of size 1.
    near = torch.linalg.vector_norm(row_norms(error), dim=(1, 2)) < CONVERGES
    kept = torch.where((active & near)[:, None, None], mended, rows)
    products.set_columns_(x, turn, kept)
