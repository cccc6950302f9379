"""Groups of parameters for steps in radians."""

from typing import Any

import torch

from ..arguments import (
    assert_known,
    assert_module,
    assert_some_low_rank,
    check_range,
    checked_integer,
)
from ..backends.distributed import reshard_all
from ..normalization import NORMALIZATIONS, planned_angle
from ..sketches.coordinates import COORDINATES
from .kinds import is_low_rank, low_rank_of, manifold_of

__all__ = ["param_groups"]

# What torch and this package call the weights that act on the state at each time step: of all
# layers, of the gates of OrthogonalGRU, and of an LSTM with `proj_size`.
_RECURRENT = ("weight_hh", "weight_gates", "weight_hr")


def param_groups(
    model: torch.nn.Module,
    *,
    lr: float | torch.Tensor,
    steps: int | None = None,
    angle: float | torch.Tensor | None = None,
    sequence_length: int | None = None,
    normalize: str = "angle",
) -> list[dict[str, Any]]:
    r"""Split parameters into groups: orthogonal ones, with an angle as learning rate, and others.

    The learning rate of the orthogonal parameters is an angle, so the others need another one. With
    ``steps`` each orthogonal parameter gets an angle by its size and rank; with ``angle`` all get
    the same.

    Parameters
    ----------
    model : torch.nn.Module
        whose parameters are trained
    lr : float or torch.Tensor
        learning rate of the parameters that are not on a manifold of this package
    steps : int
        How many steps the training will take. The angles assume that a schedule lowers the rate
        to zero in as many steps, linearly or like a cosine.
    angle : float or torch.Tensor
        Instead of ``steps``: how far a step turns the planes of each orthogonal parameter, in
        radians. Let it fall to zero too, because such steps do not shrink by themselves.
    sequence_length : int
        How many time steps a sequence has. Needed with ``steps`` if the model has orthogonal
        recurrent weights: those named ``weight_hh...``, ``weight_gates...`` or ``weight_hr...``,
        parametrized or not. If a weight has several names, one like this is enough.
    normalize : {"angle", "spectral"}
        whether the angle is the root mean square over the planes that a step turns, or the angle of
        each of them, see :class:`ProjUNNRiemannianSGD`

    Returns
    -------
    list of dict
        For :class:`ProjUNNRiemannianSGD` and :class:`ProjUNNRiemannianAdam`, with the names of the
        parameters: a group for each angle, in the model's order, and last a group of all other
        parameters, if there are any.

    Raises
    ------
    ValueError, TypeError
        If an argument is missing or out of range, or no parameter is on a manifold of this package.

    Notes
    -----
    With ``steps`` = T, an n x p matrix whose steps have rank k gets

    .. math::

        \min\Big(0.75, \frac{5m}{kT}\Big)
        \text{ radians,}\quad m = \min(\max(n, p), 2 \min(n, p)),

    where k=None counts as k = m / 2. With ``sketch="coordinates"`` the fraction is doubled. A
    recurrent matrix gets at most 1 / ``sequence_length``. The rule is the same for real and complex
    matrices and for both values of ``normalize``.

    Schedules that multiply the rate of each group, such as ``LinearLR``, ``LambdaLR`` and
    ``CosineAnnealingLR``, suit these groups. ``OneCycleLR`` and ``CyclicLR`` overwrite the rates:
    pass them ``max_lr=[group["lr"] for group in groups]``.

    Examples
    --------
    >>> import geoopt_projunn, torch
    >>> layer = geoopt_projunn.nn.OrthogonalLinear(64, 32)
    >>> groups = geoopt_projunn.param_groups(layer, lr=1e-3, steps=1000)
    >>> optimizer = geoopt_projunn.ProjUNNRiemannianSGD(groups, momentum=0.9, nesterov=True)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.04, 0.001]
    >>> schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=1000)
    """
    assert_module("model", model)
    reshard_all(model)
    check_range("lr", lr, 0.0)
    assert_known("normalize", normalize, tuple(NORMALIZATIONS))
    if steps is not None:
        steps = checked_integer("steps", steps, remedy="or pass `angle` instead of it")
    if sequence_length is not None:
        remedy = "leave it out if no orthogonal weight is recurrent"
        sequence_length = checked_integer("sequence_length", sequence_length, remedy=remedy)
    _check_one_answer(steps, angle, sequence_length)
    named = list(model.named_parameters())
    orthogonal = [(name, p) for name, p in named if is_low_rank(manifold_of(p))]
    assert_some_low_rank(model, orthogonal)
    groups: list[dict[str, Any]] = []
    if steps is None:
        groups.append({"params": orthogonal, "lr": angle, "normalize": normalize})
    else:
        recurrent = _recurrent(model)
        _check_sequences(sequence_length, recurrent)
        together: dict[float, list[tuple[str, torch.Tensor]]] = {}
        for name, p in orthogonal:
            rate = _planned(p, steps, sequence_length if id(p) in recurrent else None)
            together.setdefault(rate, []).append((name, p))
        for rate, params in together.items():
            groups.append({"params": params, "lr": rate, "normalize": normalize})
    others = [(name, p) for name, p in named if not is_low_rank(manifold_of(p))]
    return [*groups, {"params": others, "lr": lr}] if others else groups


def _planned(p: torch.Tensor, steps: int, sequence_length: int | None) -> float:
    manifold = low_rank_of(p)
    manifold.assert_check_point(p)
    rows, columns, k = p.shape[-2] // manifold.blocks, p.shape[-1], manifold.rank(p)
    at_random = manifold.sketch == COORDINATES and k is not None
    angle = planned_angle(rows, columns, k, steps, at_random=at_random)
    return angle if sequence_length is None else min(angle, 1 / sequence_length)


def _recurrent(model: torch.nn.Module) -> dict[int, str]:
    """Return the orthogonal recurrent weights, their names by identity.

    A tied one may have another name first, and a parametrized one is called
    ``parametrizations.weight_hh.original``.
    """
    return {
        id(p): name
        for name, p in model.named_parameters(remove_duplicate=False)
        if is_low_rank(manifold_of(p))
        and any(part.startswith(_RECURRENT) for part in name.split("."))
    }


def _check_one_answer(steps: Any, angle: Any, sequence_length: Any) -> None:
    if (steps is None) == (angle is None):
        raise ValueError(
            "One of `steps` and `angle` must be given, got "
            f"{'neither' if steps is None else 'both'}; pass `steps`, the planned number of steps, "
            "for angles by the sizes of the parameters, or `angle` for one of your own."
        )
    if angle is not None:
        check_range("angle", angle, 0.0)
    if sequence_length is not None and steps is None:
        raise ValueError(
            f"`sequence_length` must be None with `angle`, which it does not change, got "
            f"{sequence_length}; leave it out, or pass `steps` instead of `angle`."
        )


def _check_sequences(sequence_length: int | None, recurrent: dict[int, str]) -> None:
    if recurrent and sequence_length is None:
        first = next(iter(recurrent.values()))
        raise ValueError(
            f"`sequence_length` must be given with `steps`, because `{first}` acts at each time "
            "step; pass the number of time steps of a sequence, or `angle` instead of `steps`."
        )
    if not recurrent and sequence_length is not None:
        raise ValueError(
            "`sequence_length` must be None without an orthogonal parameter whose name begins with "
            f"{', '.join(_RECURRENT[:-1])} or {_RECURRENT[-1]}, got {sequence_length}; if one acts "
            "at each time step under another name, pass `angle` instead of `steps`."
        )
