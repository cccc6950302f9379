"""Unitary weights in modules that were written without them."""

import gc
from types import EllipsisType
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..arguments import assert_module
from ..backends.distributed import is_dtensor
from ..geometry.checks import dtype_rule, without_x
from ..linalg.precision import WIDE
from ..low_rank_manifold import LowRankManifold, Rank, low_rank_manifold_of
from ..manifolds import LowRankStiefel, LowRankUnitary
from .gru import OrthogonalGRU, OrthogonalGRUCell
from .keeping import keep_manifolds
from .placing import put_on
from .starting import check_init, initial, manifold_for

__all__ = ["orthogonalize_"]


@torch.no_grad()
def orthogonalize_(
    module: torch.nn.Module,
    name: str,
    k: Rank | EllipsisType = ...,
    *,
    blocks: int | None = None,
    retraction: str | None = None,
    sketch: str | None = None,
    init: str = "nearest",
) -> torch.nn.Parameter:
    r"""Put a weight of any module on :class:`LowRankUnitary` or :class:`LowRankStiefel`, in place.

    A square matrix becomes orthogonal, or unitary if it is complex; a tall one keeps orthonormal
    columns, a wide one orthonormal rows.

    Parameters
    ----------
    module : torch.nn.Module
        the module, or one that contains it
    name : str
        of the parameter, as in ``module.named_parameters()``: "weight_hh_l0",
        "layers.0.self_attn.out_proj.weight". Its shape must be (*, n, p), its dtype float32,
        float64, complex64 or complex128.
    k, retraction, sketch
        Of the manifold, with its defaults; ``k=None`` for full rank. If the weight is already on
        one of these manifolds, it keeps the options that are not given.
    blocks : int, optional
        How many matrices are stacked one above the other in the weight; each is put on the
        manifold. The weights of these modules stack several, and need it: 4 for ``weight_hh_l0``
        and ``weight_ih_l0`` of torch.nn.LSTM and ``weight_hh`` and ``weight_ih`` of LSTMCell, 3 for
        those of GRU and GRUCell, 3 for ``in_proj_weight`` of MultiheadAttention, 3 for the input
        weights of OrthogonalGRU and 2 for its ``weight_gates_l0``. The parameter keeps its shape,
        and checkpoints theirs.
    init : {"nearest", "henaff", "cayley", "identity", "haar"}
        "nearest" moves the weight to the nearest point, :math:`O(np^2)`; a weight that is
        orthogonal to rounding keeps every bit. The others replace the weight, see
        :mod:`geoopt_projunn.init`. A rectangular weight takes "nearest", "identity" (ones on
        the diagonal) and "haar".

    Returns
    -------
    geoopt.ManifoldParameter
        The same object as before, also for optimizers and modules that share it. Step it
        with an optimizer of this package or of geoopt; those of torch would leave the manifold.
        If an optimizer has stepped the weight before, make a new one.

    Raises
    ------
    AttributeError
        If there is no such module or parameter.
    TypeError
        If ``module`` is no module or ``name`` no string; if the weight is no plain parameter, a
        DTensor or the kernel of a convolution, or its dtype is not one of those above.
    ValueError
        If its shape or its values do not fit, an argument is out of range, ``blocks`` is needed
        and not given, or it is of an embedding with ``max_norm`` or ``padding_idx``.
        After any of these, the module is as it was.

    Notes
    -----
    The weight stays on the manifold, in every module that holds it: after ``.to("meta")``,
    ``to_empty`` and ``load_state_dict(assign=True)``, and if you set a torch.nn.Parameter in its
    place. A new parameter of another shape or of integers is an error that names the weight, and so
    is a DTensor, as ``fully_shard`` makes them, outside of
    :func:`geoopt_projunn.distributed.keep_manifolds`. If you set a ManifoldParameter on another
    manifold, it stays on that one. To get a plain parameter again, delete the attribute before you
    set it::

        weight = module.weight.detach().clone()
        del module.weight
        module.weight = torch.nn.Parameter(weight)

    Values that are loaded, or drawn by ``reset_parameters`` of one of torch's modules, may be
    off the manifold: :func:`orthogonality_errors` shows it, :func:`project_` repairs it.

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
    assert_module("module", module)
    owner, leaf = _owner(module, name)
    weight = owner._parameters[leaf]
    assert weight is not None
    _assert_plain(name, weight)
    now = low_rank_manifold_of(weight)
    if blocks is None and now is None:
        _assert_one_matrix(name, owner, leaf, weight)
    now = now or LowRankUnitary()
    options: dict[str, Any] = {
        "retraction": now.retraction if retraction is None else retraction,
        "sketch": now.sketch if sketch is None else sketch,
        "sweep": now.sweep,
        "blocks": now.blocks if blocks is None else blocks,
    }
    rank = now.k if isinstance(k, EllipsisType) else k
    if isinstance(now, LowRankStiefel):
        # Square ones as well: the unit of its learning rate is another.
        manifold: LowRankManifold = LowRankStiefel(rank, **options)
    else:
        manifold = manifold_for(weight.shape, rank, **options)
    _check(name, weight, manifold)
    check_init(init, weight.shape, manifold.blocks, "nearest")
    if init == "nearest":
        try:
            value = manifold.projx(weight)
        except ValueError as error:
            raise ValueError(f"`{name}` cannot be projected: {without_x(error)}") from error
    else:
        value = initial(manifold, weight.shape, init, dtype=weight.dtype, device=weight.device)
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
    if not isinstance(name, str):
        raise TypeError(
            f"`name` must be a string, got {type(name).__name__}; pass the parameter's name in "
            "`module.named_parameters()`."
        )
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
            "BlockOrthogonalConv1d or BlockOrthogonalConv2d of geoopt_projunn.nn, or "
            "OrthogonalConv1d, OrthogonalConv2d or OrthogonalConv3d."
        )
    if isinstance(owner, torch.nn.Embedding | torch.nn.EmbeddingBag) and leaf == "weight":
        _assert_rows_are_free(name, owner)
    return owner, leaf


def _assert_rows_are_free(name: str, owner: torch.nn.Embedding | torch.nn.EmbeddingBag) -> None:
    for option, why in (
        ("max_norm", "shortens rows in each forward pass"),
        ("padding_idx", "leaves one row as it is, while steps turn all of them"),
    ):
        value = getattr(owner, option)
        if value is not None:
            raise ValueError(
                f"`{name}` of {type(owner).__name__} cannot be orthogonal with `{option}`, which "
                f"{why}, got {option}={value}; make the module without `{option}`."
            )


# How many matrices the weights of modules hold, and the size of each.
_STACKS: tuple[tuple[tuple[type, ...], str, int, str], ...] = (
    ((torch.nn.LSTM, torch.nn.LSTMCell), "weight_hh weight_ih", 4, "hidden_size"),
    ((torch.nn.GRU, torch.nn.GRUCell), "weight_hh weight_ih", 3, "hidden_size"),
    ((torch.nn.MultiheadAttention,), "in_proj_weight", 3, "embed_dim"),
    ((OrthogonalGRU, OrthogonalGRUCell), "weight_gates", 2, "hidden_size"),
)


def _assert_one_matrix(
    name: str, owner: torch.nn.Module, leaf: str, weight: torch.nn.Parameter
) -> None:
    for kinds, names, count, size in _STACKS:
        if (
            isinstance(owner, kinds)
            and leaf.startswith(tuple(names.split()))
            and weight.ndim == 2
            and weight.shape[0] == count * getattr(owner, size)
        ):
            raise ValueError(
                f"`{name}` of {type(owner).__name__}, of shape {tuple(weight.shape)}, holds "
                f"{count} matrices, one above the other; give `blocks={count}` to make each of "
                "them orthogonal."
            )


def _assert_plain(name: str, weight: torch.nn.Parameter) -> None:
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


def _check(name: str, weight: torch.nn.Parameter, manifold: LowRankManifold) -> None:
    if weight.dtype not in WIDE:
        raise TypeError(dtype_rule(name, weight.dtype))
    if weight.ndim < 2:
        raise ValueError(
            f"`{name}` must have shape (*, n, p), got {tuple(weight.shape)}, which is no matrix."
        )
    if weight.is_meta:
        raise ValueError(
            f"`{name}` must have values, but is on the meta device; call this after `to_empty`."
        )
    fits, reason = manifold.check_point(weight, explain=True)
    if not fits:
        raise ValueError(f"`{name}` does not fit: {without_x(reason)}")
