"""What steps of a given rank would keep of a gradient: for choosing k and a learning rate."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .arguments import (
    assert_has_values,
    assert_module,
    assert_some_low_rank,
    check_range,
    checked_integer,
)
from .backends import choose
from .backends.distributed import reshard_all, whole_of
from .backends.spec import StepSpec
from .linalg.dense import largest, skewh
from .linalg.precision import full_precision
from .low_rank_manifold import LowRankManifold, low_rank_manifold_of
from .manifolds import LowRankUnitary
from .normalization import noise_floor

__all__ = ["Diagnosis", "ParameterDiagnosis", "diagnose", "kept_fraction"]

# Of the test vectors, which differ from step to step.
_COUNTERS = 3


@full_precision
@torch.no_grad()
def kept_fraction(
    x: torch.Tensor, grad: torch.Tensor, ks: int | Iterable[int] = (1, 2, 4, 8, 16)
) -> dict[int, float]:
    r"""Return which share of a gradient steps of given ranks would follow.

    :math:`\lVert \text{sketch} \rVert^2 / \lVert \text{tangent gradient} \rVert^2` of generators,
    as a mean over three sketches and over the matrices of a batch. Above one half, a larger k
    hardly saves steps. Below, it does, but each step takes longer; at a few percent it pays.

    Parameters
    ----------
    x : torch.Tensor
        a point on one of this package's manifolds, or square unitary matrices, (\*, n, n)
    grad : torch.Tensor
        its Euclidean gradient, of the same shape
    ks : int or iterable of int
        ranks; those that are too high for matrices of this size are left out

    Returns
    -------
    dict
        the share for each k, of a batch the mean; NaN if the tangent part of the gradient is only
        rounding in all matrices, or if x or the gradient holds NaN or infinity anywhere. The
        sketches "lsi" and "column" are not projections, so their shares may exceed 1.

    Raises
    ------
    TypeError, ValueError
        If a rank is no positive integer, or x and grad are not what they should be.

    Notes
    -----
    :math:`O(kn^2)` for each sketch and :math:`O(n^3)` once, for the norm of the tangent gradient.
    """
    manifold = low_rank_manifold_of(x) or LowRankUnitary(k=None)
    points, grads, _ = _batches(manifold, x, grad)
    whole = _squared_length(points, grads)
    if not _is_finite(points):
        whole = torch.full_like(whole, math.nan)
    shares = {}
    for i, rank in enumerate([ks] if isinstance(ks, int) else ks):
        k = checked_integer(f"ks[{i}]", rank, remedy="pass ranks, as in ks=(1, 2, 4)")
        if k <= _highest_rank(manifold, points):
            shares[k] = _kept(_spec(manifold, points, k), points, grads, whole)
    return shares


class ParameterDiagnosis(NamedTuple):
    """What a step along the gradient of one parameter would do."""

    name: str
    shape: tuple[int, ...]
    k: int | None
    kept: float
    """:func:`kept_fraction` at this k; 1 for k = None, NaN if there is a note."""
    angle: float
    """Root mean square angle of the planes, in radians, of a step along the gradient itself; NaN if
    there is a note."""
    orthogonality_error: float
    """The largest ‖xᴴx − I‖ of the parameter's matrices."""
    k_for_half: int | None
    """The smallest power of two, or the highest rank, that keeps half of the gradient; None if no
    finite rank does."""
    note: str = ""
    """Why there is no share and no angle: "no gradient", "parameter not finite", "gradient not
    finite" (NaN or infinity) or "no tangent gradient" (only rounding); else empty."""


class Diagnosis(tuple[ParameterDiagnosis, ...]):
    """One :class:`ParameterDiagnosis` for each parameter, printed as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = ("parameter", "shape", "k", "kept", "angle", "‖xᴴx − I‖", "k for half", "")
        lines = [head, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    __str__ = __repr__


def diagnose(model: torch.nn.Module, *, lr: float | torch.Tensor = 1.0) -> Diagnosis:
    r"""Say what a step would do to each orthogonal parameter of a model, after ``backward``.

    Parameters
    ----------
    model : torch.nn.Module
        with gradients of its parameters
    lr : float or torch.Tensor
        Learning rate of the gradient step whose angle is shown. Momentum, Adam's moments and
        ``normalize`` are not known here: with ``normalize`` the angle is the learning rate.

    Returns
    -------
    Diagnosis
        prints as a table: the share of the gradient that a step keeps, its angle in radians, the
        orthogonality error, and the smallest power of two as k that would keep half. If a parameter
        has no gradient, or one that is not finite or has no tangent part, a note at the end of its
        row says so, and the values that depend on it are NaN.

    Raises
    ------
    TypeError, ValueError
        If ``model`` is no module, ``lr`` is no number or below 0, no parameter is on a manifold of
        this package, none of these has a gradient, or one is on the meta device.

    Notes
    -----
    :math:`O(n^3)` for each matrix; the host waits. Nothing is changed.

    Examples
    --------
    >>> import geoopt_projunn, torch
    >>> model = geoopt_projunn.nn.OrthogonalRNN(3, 32)
    >>> outputs, _ = model(torch.randn(5, 2, 3))
    >>> outputs.square().sum().backward()
    >>> [one.name for one in geoopt_projunn.diagnose(model)]
    ['weight_hh_l0']
    """
    assert_module("model", model)
    check_range("lr", lr, 0.0)
    reshard_all(model)
    named = model.named_parameters()
    orthogonal = {name: p for name, p in named if low_rank_manifold_of(p) is not None}
    assert_some_low_rank(model, orthogonal)
    for name, p in orthogonal.items():
        assert_has_values(name, p)
    if all(p.grad is None for p in orthogonal.values()):
        raise ValueError(
            "`model` must have a gradient, but none of its parameters on LowRankUnitary and "
            "LowRankStiefel has one; call `backward()` on a loss first."
        )
    return Diagnosis(_diagnosed(name, p, float(lr)) for name, p in orthogonal.items())


@full_precision
@torch.no_grad()
def _diagnosed(name: str, p: torch.Tensor, lr: float) -> ParameterDiagnosis:
    manifold = low_rank_manifold_of(p)
    assert manifold is not None
    k = manifold.rank(p)
    error = float(largest(manifold.orthogonality_error(p)))
    empty = ParameterDiagnosis(name, tuple(p.shape), k, math.nan, math.nan, error, None)
    if p.grad is None:
        return empty._replace(note="no gradient")
    points, grads, largest_entry = _batches(manifold, p, p.grad)
    if not _is_finite(points):
        return empty._replace(note="parameter not finite")
    if not math.isfinite(largest_entry):
        return empty._replace(note="gradient not finite")
    whole, highest = _squared_length(points, grads), _highest_rank(manifold, points)
    if whole.isnan().all():
        return empty._replace(note="no tangent gradient")
    spec = _spec(manifold, points, k)
    kept = _kept(spec, points, grads, whole)
    length = largest_entry * float(_squared_lengths(spec, points, grads).mean()) ** 0.5
    # A matrix of one row has no plane, but a phase if it is complex, like half of one.
    angle = lr * manifold.spec(points).scale * length / math.sqrt(2 * (k or highest) or 1)
    ranks = [2**i for i in range(highest.bit_length()) if 2**i < highest]
    ranks += [highest] if highest else []
    shares = ((rank, _kept(_spec(manifold, points, rank), points, grads, whole)) for rank in ranks)
    half = next((rank for rank, share in shares if share >= 0.5), None)
    return empty._replace(kept=kept, angle=angle, k_for_half=half)


def _cells(one: ParameterDiagnosis) -> tuple[str, ...]:
    size = "×".join(map(str, one.shape))
    kept = "-" if math.isnan(one.kept) else f"{one.kept:.0%}"
    angle = "-" if math.isnan(one.angle) else f"{one.angle:.2g}"
    half = "-" if one.k_for_half is None else str(one.k_for_half)
    error = f"{one.orthogonality_error:.1e}"
    return one.name, size, str(one.k), kept, angle, error, half, one.note


def _batches(
    manifold: LowRankManifold, x: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """View a point and its gradient as batches of tall matrices, (b, n, p); gather DTensors.

    The gradient is divided by its largest entry, which comes third: squares of large ones overflow.
    """
    x, grad = whole_of(x), whole_of(grad)
    manifold.assert_check_point(x)
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ValueError(
            f"`grad` must have the shape and dtype of `x`, {tuple(x.shape)} and {x.dtype}, got "
            f"{tuple(grad.shape)} and {grad.dtype}; pass the gradient of this very parameter."
        )
    points, grads = (manifold.points(t.detach().as_subclass(torch.Tensor)) for t in (x, grad))
    points, grads = (t.reshape(-1, *t.shape[-2:]) for t in (points, grads))
    largest_entry = float(largest(grads.abs()))
    return points, grads / (largest_entry or 1.0), largest_entry


def _is_finite(points: torch.Tensor) -> bool:
    return bool(points.isfinite().all())


def _spec(manifold: LowRankManifold, points: torch.Tensor, k: int | None) -> StepSpec:
    # Without the factor of the metric, which the whole has not either.
    return manifold.spec(points)._replace(k=k, scale=1.0)


def _highest_rank(manifold: LowRankManifold, points: torch.Tensor) -> int:
    return manifold.highest_rank(*points.shape[-2:])[0]


def _squared_length(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\lVert \operatorname{skewh}(d x^H) \rVert_F^2`, (b,); NaN for rounding."""
    inside = x.mH @ d
    squares = skewh(inside).abs().double().square().sum((-2, -1))
    if x.shape[-2] > x.shape[-1]:
        squares = squares + (d - x @ inside).abs().double().square().sum((-2, -1)) / 2
    least = (noise_floor(x) * torch.linalg.matrix_norm(d).double()) ** 2
    return torch.where(squares > least, squares, math.nan)


def _squared_lengths(spec: StepSpec, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Return the squared norms of some sketches of d, (counters, b)."""
    lengths = []
    for number in range(_COUNTERS):
        counter = torch.full(x.shape[:1], number, dtype=torch.int64, device=x.device)
        core = choose(x).sketch(x, d, spec, counter).core
        lengths.append(skewh(core).abs().square().sum((-2, -1)))
    return torch.stack(lengths)


def _kept(spec: StepSpec, x: torch.Tensor, d: torch.Tensor, whole: torch.Tensor) -> float:
    return float((_squared_lengths(spec, x, d) / whole).nanmean())
