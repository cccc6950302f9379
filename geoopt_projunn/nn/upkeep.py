"""How far the parameters of a module are off their manifolds, and back onto them."""

import torch

from ..arguments import assert_has_values, assert_module
from ..backends.distributed import reshard_all
from ..geometry.checks import dtype_rule, without_x
from ..linalg.dense import largest
from ..linalg.precision import WIDE
from ..low_rank_manifold import LowRankManifold, low_rank_manifold_of
from .record import Record

__all__ = ["orthogonality_errors", "project_"]


def orthogonality_errors(module: torch.nn.Module, exact: bool = False) -> dict[str, float]:
    r"""Measure :math:`\lVert x^H x - I \rVert_F` of parameters on LowRankUnitary or LowRankStiefel.

    For a parameter with fewer rows than columns, it is :math:`\lVert x x^H - I \rVert_F`.

    Parameters
    ----------
    module : torch.nn.Module
        any module
    exact : bool
        compute the norms, :math:`O(np^2)` for each matrix, instead of estimating them by
        :meth:`LowRankUnitary.estimate_orthogonality_error`, :math:`O(np)`

    Returns
    -------
    dict
        The error of each parameter on one of these manifolds (of its worst matrix, if it holds
        several), by the names of ``module.named_parameters(remove_duplicate=False)``: a parameter
        with several names is under each of them.

    Raises
    ------
    TypeError, ValueError
        If a parameter is in half precision or on the meta device.

    RuntimeError
        If another parameter stands in for one on a manifold.

    Notes
    -----
    The host waits for the results. Where FSDP has gathered parameters for a forward pass, each
    process first gets its parts back; the next pass gathers anew.

    Examples
    --------
    >>> from geoopt_projunn.nn import OrthogonalRNN
    >>> errors = orthogonality_errors(OrthogonalRNN(3, 8))
    >>> list(errors), max(errors.values()) < 1e-5
    (['weight_hh_l0'], True)
    """
    errors: dict[torch.Tensor, torch.Tensor] = {}
    found = _on_low_rank(module)
    for _, p, manifold in found:
        if p not in errors:
            measure = (
                manifold.orthogonality_error if exact else manifold.estimate_orthogonality_error
            )
            errors[p] = largest(measure(p))
    return {name: float(errors[p]) for name, p, _ in found}


@torch.no_grad()
def project_(module: torch.nn.Module) -> torch.nn.Module:
    r"""Move every parameter on LowRankUnitary or LowRankStiefel to the nearest point, in place.

    The average of unitary matrices is not unitary. Call this on models that hold averages of
    weights (SWA, EMA), after loading weights that were trained without the manifold, and after
    adding noise.

    Parameters
    ----------
    module : torch.nn.Module
        any module

    Returns
    -------
    torch.nn.Module
        ``module``

    Raises
    ------
    TypeError, ValueError
        If a parameter is in half precision, on the meta device or not finite. Then no parameter
        has changed.
    RuntimeError
        If another parameter stands in for one on a manifold.

    Notes
    -----
    Where FSDP has gathered parameters for a forward pass, each process first gets its parts back.
    It calls :meth:`LowRankUnitary.projx` for each, :math:`O(np^2)`. A parameter that is unitary to
    rounding costs :math:`O(np)` and keeps every bit. This takes the memory of one more copy of the
    parameters.

    Examples
    --------
    >>> from torch.optim.swa_utils import AveragedModel
    >>> from geoopt_projunn.nn import OrthogonalRNN
    >>> average = AveragedModel(OrthogonalRNN(3, 8))
    >>> for _ in range(2):  # train the model between the two
    ...     average.update_parameters(OrthogonalRNN(3, 8))
    >>> max(orthogonality_errors(average).values()) > 0.1
    True
    >>> max(orthogonality_errors(project_(average)).values()) < 1e-5
    True
    """
    projected: dict[torch.Tensor, torch.Tensor] = {}
    for name, p, manifold in _on_low_rank(module):
        if p in projected:
            continue
        try:
            projected[p] = manifold.projx(p)
        except ValueError as error:
            raise ValueError(f"`{name}` cannot be projected: {without_x(error)}") from error
    for p, value in projected.items():
        p.copy_(value)
    return module


def _on_low_rank(module: torch.nn.Module) -> list[tuple[str, torch.Tensor, LowRankManifold]]:
    """Return names, parameters and manifolds, after checks of all of them."""
    assert_module("module", module)
    reshard_all(module)
    _assert_no_stand_in(module)
    found: list[tuple[str, torch.Tensor, LowRankManifold]] = []
    for name, p in module.named_parameters(remove_duplicate=False):
        manifold = low_rank_manifold_of(p)
        if manifold is None:
            continue
        assert_has_values(name, p)
        try:
            manifold.assert_check_point(p)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`{name}` cannot be measured or projected: {without_x(error)}"
            ) from error
        found.append((name, p, manifold))
    return found


def _assert_no_stand_in(module: torch.nn.Module) -> None:
    """Raise an error if a plain parameter stands in for one on a manifold."""
    for path, one in module.named_modules(remove_duplicate=False):
        record = one._parameters
        # Modules of this package, and those treated by orthogonalize_, know where theirs belong.
        for leaf, manifold in record.manifolds.items() if isinstance(record, Record) else ():
            p = record.get(leaf)
            is_there = p is None or hasattr(p, "manifold")
            if is_there or not isinstance(manifold, LowRankManifold):
                continue
            name = f"{path}.{leaf}" if path else leaf
            if p.dtype not in WIDE:
                reason = without_x(dtype_rule("x", p.dtype))
                raise TypeError(f"`{name}` cannot be measured or projected: {reason}")
            raise RuntimeError(
                f"`{name}` belongs on the {manifold}, but another parameter stands in for it: "
                + (
                    "FSDP has gathered it for a pass. Call this outside of the forward pass, for "
                    "the outermost module that `fully_shard` was given, or after its `reshard()`."
                    if record.stands_in(leaf)
                    else "call this outside of `functional_call`, or set the parameter as an "
                    "attribute if another library has put it there."
                )
            )
