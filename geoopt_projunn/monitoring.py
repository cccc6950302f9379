"""Numbers about a training, for any logger."""

from collections.abc import Mapping
from typing import Any

import torch

from .arguments import assert_module
from .nn import orthogonality_errors
from .optim.base import ProjUNNOptimizer
from .optim.kinds import is_low_rank, manifold_of

__all__ = ["metrics"]


def metrics(
    model: torch.nn.Module, optimizer: Any = None, *, exact: bool = False
) -> dict[str, float]:
    r"""Return orthogonality errors and skipped steps as a flat dictionary of floats.

    Pass it to ``wandb.log``, Lightning's ``log_dict``, Accelerate's ``log`` or MLflow's
    ``log_metrics``; for TensorBoard call ``add_scalar`` for each item.

    Parameters
    ----------
    model : torch.nn.Module
        any module
    optimizer : ProjUNNRiemannianSGD or ProjUNNRiemannianAdam, optional
        The one that trains it, or a wrapper of Lightning, Accelerate or torch around it. Without
        it, there are no skipped steps in the result.
    exact : bool
        see :func:`geoopt_projunn.nn.orthogonality_errors`

    Returns
    -------
    dict
        The keys are the same at each call, with a parameter's name after the slash:

        - ``"orthogonality_error/…"``: :math:`\lVert x^H x - I \rVert_F` of each parameter on
          LowRankUnitary or LowRankStiefel;
        - ``"skipped_steps/…"``: how many steps each of these has skipped so far because something
          was not finite;
        - ``"skipped_steps"``: the optimizer's ``skipped_steps``, which is their sum.

    Raises
    ------
    TypeError
        If ``model`` is no module, or the optimizer not one of this package.
    TypeError, ValueError
        If a parameter is in half precision or on the meta device.

    Notes
    -----
    The host waits for the device: on a GPU call it every hundred steps, say. Where parameters are
    split over several processes, all of them have to call it. Between the forward and the backward
    pass of a model that FSDP splits, it costs a further exchange of whole parameters.

    Examples
    --------
    >>> import geoopt_projunn
    >>> model = geoopt_projunn.nn.OrthogonalRNN(3, 8)
    >>> optimizer = geoopt_projunn.ProjUNNRiemannianSGD(model.parameters(), lr=0.1)
    >>> list(geoopt_projunn.metrics(model, optimizer))
    ['orthogonality_error/weight_hh_l0', 'skipped_steps/weight_hh_l0', 'skipped_steps']
    """
    assert_module("model", model)
    errors = orthogonality_errors(model, exact=exact)
    found = {f"orthogonality_error/{name}": error for name, error in errors.items()}
    if optimizer is not None:
        names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
        found |= _skipped(_unwrapped(optimizer), names)
    return found


def _skipped(optimizer: ProjUNNOptimizer, names: Mapping[torch.Tensor, str]) -> dict[str, float]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    counts = optimizer.skipped_steps_by_parameter().items()
    return {
        f"skipped_steps/{names.get(p, key)}": float(count)
        for p, (key, count) in zip(params, counts, strict=True)
        if is_low_rank(manifold_of(p))
    } | {"skipped_steps": float(optimizer.skipped_steps)}


def _unwrapped(optimizer: Any) -> ProjUNNOptimizer:
    inner = optimizer
    while not isinstance(inner, ProjUNNOptimizer):
        # "optimizer" is Lightning's and Accelerate's name, "optim" ZeroRedundancyOptimizer's.
        inner = getattr(inner, "optimizer", getattr(inner, "optim", None))
        if inner is None:
            raise TypeError(
                "`optimizer` must be a ProjUNNRiemannianSGD or ProjUNNRiemannianAdam, got "
                f"{type(optimizer).__name__}, which counts no skipped steps; leave `optimizer` out."
            )
    return inner
