"""Unitary weights in modules that were written without them."""

import gc
from types import EllipsisType

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..backends.distributed import is_dtensor
from ..checks import dtype_rule
from ..init import INITS
from ..linalg.precision import WIDE
from ..manifold import LowRankUnitary
from .keeping import keep_manifolds
from .placing import put_on, without_x

__all__ = ["orthogonalize_"]


@torch.no_grad()
def orthogonalize_(
    module: torch.nn.Module,
    name: str,
    k: int | EllipsisType | None = ...,
    *,
    retraction: str | None = None,
    sketch: str | None = None,
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
        Of :class:`LowRankUnitary`, with its defaults; ``k=None`` for full rank. A weight that is
        on a LowRankUnitary keeps the options that are not given.
    init : {"nearest", "henaff", "cayley", "identity", "haar"}
        "nearest" moves the weight to the nearest unitary matrix, :math:`O(n^3)`, or leaves it
        bit for bit if it is one to rounding; the others replace it,
        see :mod:`geoopt_projunn.init`.

    Returns
    -------
    geoopt.ManifoldParameter
        The same object as before: optimizers and modules that share it need not be told. Step it
        with an optimizer of this package or of geoopt; those of torch would leave the manifold.
        Make an optimizer anew if it has stepped the weight before.

    Raises
    ------
    AttributeError
        If there is no such module or parameter.
    TypeError
        If it is no plain parameter, a DTensor or the kernel of a convolution, or its dtype is not
        one of those above.
    ValueError
        If its shape or its values do not fit, or an argument is out of range.
        After any of these, the module is as it was.

    Notes
    -----
    The weight stays on the manifold, in every module that holds it: in ``.to("meta")`` and
    ``to_empty``, in ``load_state_dict(assign=True)``, and if a torch.nn.Parameter is set in its
    place. What does not fit is an error that names the weight: another shape, integers, and outside
    of :func:`geoopt_projunn.distributed.keep_manifolds` a DTensor, as ``fully_shard`` makes them. A
    ManifoldParameter on another manifold stays on that one. To have a plain parameter again, delete
    the attribute before you set it::

        weight = module.weight.detach().clone()
        del module.weight
        module.weight = torch.nn.Parameter(weight)

    Loaded values may be off the manifold: :func:`orthogonality_errors` tells, :func:`project_`
    puts them back.

    ``.half()`` and ``.bfloat16()`` convert the weight, for inference; the optimizers do not step
    it then.

    With ``torch.__future__.set_swap_module_params_on_conversion(True)``, a conversion that has
    nothing to do, such as ``.cpu()`` on a CPU, raises a RuntimeError. This is torch's behaviour
    for every parameter of geoopt.

    Modules outside ``module`` may share the weight. To find them, this looks through all objects
    of the process: 0.1 to 0.3 s for a million of them.

    Examples
    --------
    >>> rnn = torch.nn.RNN(3, 8, nonlinearity="relu")
    >>> weight = orthogonalize_(rnn, "weight_hh_l0", k=2)
    >>> weight is rnn.weight_hh_l0, weight.manifold.k
    (True, 2)
    """
    if init != "nearest" and init not in INITS:
        names = ", ".join(repr(known) for known in ("nearest", *INITS))
        raise ValueError(f"`init` must be one of {names}, got {init!r}.")
    owner, leaf = _owner(module, name)
    weight = owner._parameters[leaf]
    assert weight is not None
    now = getattr(weight, "manifold", None)
    now = now if isinstance(now, LowRankUnitary) else LowRankUnitary()
    manifold = LowRankUnitary(
        now.k if isinstance(k, EllipsisType) else k,
        retraction=now.retraction if retraction is None else retraction,
        sketch=now.sketch if sketch is None else sketch,
        sweep=now.sweep,
    )
    _check(name, weight, manifold)
    if init == "nearest":
        try:
            value = manifold.projx(weight)
        except ValueError as error:
            raise ValueError(f"`{name}` cannot be projected: {without_x(error)}") from error
    else:
        value = INITS[init](*weight.shape, dtype=weight.dtype, device=weight.device)
    weight.copy_(value)
    put_on(weight, manifold)
    paths = {holder: path for path, holder in module.named_modules()}
    for holder in _holders(weight, list(paths)):
        path = paths.get(holder, "")
        keep_manifolds(holder, f"{path}." if path else "")
    return weight


def _holders(weight: torch.nn.Parameter, modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules that a parameter belongs to, among the given ones and all others."""
    inside = [module for module in modules if _holds(module, weight)]
    known = {id(module._parameters) for module in inside}
    if any(isinstance(d, dict) and id(d) not in known for d in gc.get_referrers(weight)):
        # A parameter does not know its modules. type(), since isinstance runs code of proxies.
        everything = (o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module))
        return [module for module in everything if _holds(module, weight)]
    return inside


def _holds(module: torch.nn.Module, weight: torch.nn.Parameter) -> bool:
    return any(p is weight for p in module.__dict__.get("_parameters", {}).values())


def _owner(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """Return the module that a parameter is an attribute of, and what it is called there."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if parametrize.is_parametrized(owner, leaf):
        raise TypeError(
            f"`{name}` must be a plain parameter, but is computed by a parametrization; remove it "
            f"first by `torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r})`."
        )
    if owner._parameters.get(leaf) is None:
        known = ", ".join(key for key, _ in module.named_parameters()) or "none"
        raise AttributeError(
            f"{type(module).__name__} has no parameter `{name}`. Its parameters are {known}."
        )
    if isinstance(owner, _ConvNd) and leaf == "weight":
        raise TypeError(
            f"`{name}` must hold matrices, but is the kernel of a {type(owner).__name__}: "
            "orthogonal matrices in it would not make the convolution orthogonal. Use "
            "OrthogonalConv1d, OrthogonalConv2d or OrthogonalConv3d of geoopt_projunn.nn."
        )
    return owner, leaf


def _check(name: str, weight: torch.nn.Parameter, manifold: LowRankUnitary) -> None:
    if is_dtensor(weight):
        raise TypeError(
            f"`{name}` is a DTensor already; call `orthogonalize_` before the model is "
            "distributed, inside of `geoopt_projunn.distributed.keep_manifolds(model)`."
        )
    if not hasattr(weight, "manifold") and type(weight) is not torch.nn.Parameter:
        raise TypeError(
            f"`{name}` must be a torch.nn.Parameter or a geoopt.ManifoldParameter, "
            f"got {type(weight).__name__}."
        )
    if weight.dtype not in WIDE:
        raise TypeError(dtype_rule(name, weight.dtype))
    if weight.ndim < 2 or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(
            f"`{name}` must have shape (*, n, n), got {tuple(weight.shape)}{_why(weight.shape)}."
        )
    if weight.is_meta:
        raise ValueError(
            f"`{name}` must have values, but is on the meta device; call this after `to_empty`."
        )
    fits, reason = manifold.check_point(weight, explain=True)
    if not fits:
        raise ValueError(f"`{name}` does not fit: {without_x(reason)}")


def _why(shape: torch.Size) -> str:
    if len(shape) < 2:
        return ", which is no matrix"
    rows, columns = shape[-2:]
    why = (
        ": it is rectangular, and LowRankUnitary takes square matrices. Of a rectangular one "
        "geoopt.Stiefel keeps the columns orthonormal"
    )
    if columns and rows in (3 * columns, 4 * columns):
        why += (
            f". If it is {rows // columns} square matrices stacked in one parameter, as "
            "`MultiheadAttention.in_proj_weight` and `LSTM.weight_hh_l0` are, these need a module "
            "that keeps them apart"
        )
    return why
