"""Unitary weights in modules that were written without them."""

from types import EllipsisType
from typing import Any

import torch
from torch.nn.utils import parametrize

from ..arguments import assert_module
from ..backends.distributed import is_dtensor
from ..geometry.checks import dtype_rule, without_x
from ..linalg.precision import WIDE
from ..low_rank_manifold import LowRankManifold, Rank, low_rank_manifold_of
from ..manifolds import LowRankStiefel, LowRankUnitary
from .holders import assert_matrices, assert_one_matrix, uses_of
from .keeping import record_manifolds
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
        If ``module`` is no module or ``name`` no string; if the weight is not a plain parameter, is
        a DTensor or is the kernel of a convolution; or if its dtype is not one of those above.
    ValueError
        If its shape or its values do not fit, an argument is out of range, ``blocks`` is needed
        and not given, or the weight is that of an embedding with ``max_norm`` or ``padding_idx``.
        All modules that share the weight are checked. After an error the module is as it was.

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

    On the meta device no values are computed: load or initialize them later.

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
    uses = uses_of(module, owner, leaf, name)
    for use in uses:
        assert_matrices(use)
    _assert_plain(name, weight)
    now = low_rank_manifold_of(weight)
    if blocks is None and now is None:
        for use in uses:
            assert_one_matrix(use, weight)
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
    if not weight.is_meta:
        weight.copy_(_start(name, weight, manifold, init))
    put_on(weight, manifold)
    for use in uses:
        record_manifolds(use.holder, f"{use.path}." if use.path else "")
    return weight


def _start(name: str, weight: torch.Tensor, manifold: LowRankManifold, init: str) -> torch.Tensor:
    if init != "nearest":
        return initial(manifold, weight.shape, init, dtype=weight.dtype, device=weight.device)
    try:
        return manifold.projx(weight)
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be projected: {without_x(error)}") from error


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
    return owner, leaf


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
    fits, reason = manifold.check_point(weight, explain=True)
    if not fits:
        raise ValueError(f"`{name}` does not fit: {without_x(reason)}")
