"""Groups of parameters for steps in radians."""

from typing import Any

import torch

from ..normalization import NORMALIZATIONS
from .kinds import is_low_rank, manifold_of
from .options import check_choice, check_range

__all__ = ["param_groups"]


def param_groups(
    model: torch.nn.Module,
    *,
    lr: float | torch.Tensor,
    angle: float | torch.Tensor,
    normalize: str = "angle",
) -> list[dict[str, Any]]:
    """Make a group of the orthogonal parameters, stepped in radians, and one of all others.

    One learning rate cannot serve both: for the first it is an angle.

    Parameters
    ----------
    model : torch.nn.Module
        whose parameters are trained
    lr : float or torch.Tensor
        learning rate of the parameters that are not on a manifold of this package
    angle : float or torch.Tensor
        Learning rate of the orthogonal ones, in radians: how far a step turns a plane. Start with
        5n / (kT) for T steps and n x n matrices, at most 0.8, and in a recurrent layer at most
        about one over the number of time steps. Of an n x p matrix n is the longer side, or 2p if
        that is less. Let it decay to zero, for such steps do not shrink by themselves.
    normalize : {"angle", "spectral"}
        whether ``angle`` is the root mean square over the planes that a step turns, or the angle of
        each of them, see :class:`ProjUNNRiemannianSGD`

    Returns
    -------
    list of dict
        for :class:`ProjUNNRiemannianSGD` and :class:`ProjUNNRiemannianAdam`, with the names of the
        parameters; the orthogonal ones first, the others left out if there are none

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, or no parameter is on a manifold of this package.

    Examples
    --------
    >>> import geoopt_projunn, torch
    >>> model = geoopt_projunn.nn.OrthogonalRNN(3, 8)
    >>> groups = geoopt_projunn.param_groups(model, lr=1e-3, angle=0.1)
    >>> optimizer = geoopt_projunn.ProjUNNRiemannianAdam(groups)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.1, 0.001]
    """
    check_range("lr", lr, 0.0)
    check_range("angle", angle, 0.0)
    check_choice("normalize", normalize, tuple(NORMALIZATIONS))
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": angle, "normalize": normalize},
        {"params": [], "lr": lr},
    ]
    for name, p in model.named_parameters():
        groups[0 if is_low_rank(manifold_of(p)) else 1]["params"].append((name, p))
    if not groups[0]["params"]:
        raise ValueError(
            "`model` must have a parameter on LowRankUnitary or LowRankStiefel, but "
            f"{type(model).__name__} has none; make one a `geoopt.ManifoldParameter`, use a layer "
            "of `geoopt_projunn.nn`, or pass `model.named_parameters()` to an optimizer."
        )
    return [group for group in groups if group["params"]]
