"""Unitary weights in modules that were written without them."""

import torch
from torch.nn.utils import parametrize

from ..init import INITS
from ..linalg.precision import WIDE
from ..manifold import LowRankUnitary
from .keeping import put_on

__all__ = ["orthogonality_errors", "orthogonalize_"]


@torch.no_grad()
def orthogonalize_(
    module: torch.nn.Module,
    name: str,
    k: int | None = 1,
    *,
    retraction: str = "exponential",
    sketch: str = "tangent",
    init: str = "nearest",
) -> torch.nn.Parameter:
    r"""Put a weight of any module on :class:`LowRankUnitary`, in place.

    Parameters
    ----------
    module : torch.nn.Module
        the module, or one that contains it
    name : str
        of the parameter, as in ``module.named_parameters()``: "weight_hh_l0",
        "layers.0.self_attn.out_proj.weight". Its shape must be (*, n, n), its dtype float32,
        float64, complex64 or complex128.
    k, retraction, sketch
        of :class:`LowRankUnitary`
    init : {"nearest", "henaff", "cayley", "identity", "haar"}
        "nearest" moves the weight to the nearest unitary matrix, :math:`O(n^3)`, or leaves it
        bit for bit if it is one to rounding; the others replace it,
        see :mod:`geoopt_projunn.init`.

    Returns
    -------
    geoopt.ManifoldParameter
        The same object as before, so that optimizers and modules that share it hold it still.
        Step it with an optimizer of this package or of geoopt; torch's would leave the manifold.
        One that has stepped it before should be made anew.

    Raises
    ------
    AttributeError
        If there is no such module or parameter.
    TypeError
        If it is no plain parameter, or its dtype is not one of those above.
    ValueError
        If its shape or its values do not fit, or an argument is out of range.
        After any of these, the module is as it was.

    Notes
    -----
    The module knows nothing of this: ``.to("meta")``, ``to_empty`` and
    ``load_state_dict(assign=True)`` drop the manifold as they do of any geoopt parameter, and the
    optimizers warn. Call this again then; of an orthogonal weight the values stay.

    Examples
    --------
    >>> rnn = torch.nn.RNN(3, 8, nonlinearity="relu")
    >>> weight = orthogonalize_(rnn, "weight_hh_l0", k=2)
    >>> weight is rnn.weight_hh_l0, weight.manifold.k
    (True, 2)
    """
    manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
    if init != "nearest" and init not in INITS:
        names = ", ".join(repr(known) for known in ("nearest", *INITS))
        raise ValueError(f"`init` must be one of {names}, got {init!r}.")
    weight = _parameter(module, name)
    _check(name, weight)
    manifold.assert_check_point(weight)
    if init == "nearest":
        value = manifold.projx(weight)
    else:
        value = INITS[init](*weight.shape, dtype=weight.dtype, device=weight.device)
    weight.copy_(value)
    put_on(weight, manifold)
    return weight


def _parameter(module: torch.nn.Module, name: str) -> torch.nn.Parameter:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if parametrize.is_parametrized(owner, leaf):
        raise TypeError(
            f"`{name}` must be a plain parameter, but is computed by a parametrization; remove it "
            f"first by `torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r})`."
        )
    weight = owner._parameters.get(leaf)
    if weight is None:
        known = ", ".join(key for key, _ in module.named_parameters()) or "none"
        raise AttributeError(
            f"{type(module).__name__} has no parameter `{name}`. Its parameters are {known}."
        )
    return weight


def _check(name: str, weight: torch.nn.Parameter) -> None:
    if not hasattr(weight, "manifold") and type(weight) is not torch.nn.Parameter:
        raise TypeError(
            f"`{name}` must be a torch.nn.Parameter or a geoopt.ManifoldParameter, "
            f"got {type(weight).__name__}."
        )
    if weight.dtype not in WIDE:
        raise TypeError(
            f"`{name}` must have one of the dtypes float32, float64, complex64, complex128, got "
            f"{weight.dtype}: half precision cannot hold orthogonality. Convert the module first."
        )
    if weight.ndim < 2 or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(
            f"`{name}` must have shape (*, n, n), got {tuple(weight.shape)}. Matrices stacked in "
            "one parameter, as in `MultiheadAttention.in_proj_weight` and `LSTM.weight_hh_l0`, "
            "need a module that keeps them apart."
        )
    if weight.is_meta:
        raise ValueError(
            f"`{name}` must have values, but is on the meta device; call this after `to_empty`."
        )


def orthogonality_errors(module: torch.nn.Module) -> dict[str, float]:
    r"""Measure :math:`\lVert x^H x - I \rVert_F` of every parameter on LowRankUnitary.

    Parameters
    ----------
    module : torch.nn.Module
        any module

    Returns
    -------
    dict
        The error, of the worst matrix where a parameter holds several, by the names of
        ``module.named_parameters()``. A name that is missing has lost its manifold, or never had
        one.

    Notes
    -----
    :math:`O(n^3)` for each matrix; the host waits for the results.

    Examples
    --------
    >>> from geoopt_projunn.nn import OrthogonalRNN
    >>> errors = orthogonality_errors(OrthogonalRNN(3, 8))
    >>> list(errors), max(errors.values()) < 1e-5
    (['weight_hh_l0'], True)
    """
    errors = {}
    for name, p in module.named_parameters():
        manifold = getattr(p, "manifold", None)
        if isinstance(manifold, LowRankUnitary):
            errors[name] = float(manifold.orthogonality_error(p).max())
    return errors
