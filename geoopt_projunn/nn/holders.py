"""Where a weight is held, and what speaks against orthogonal matrices in it there."""

import gc
from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from .gru import OrthogonalGRU, OrthogonalGRUCell


class Use(NamedTuple):
    """A place where a weight is held."""

    what: str
    """What messages call the weight there."""
    holder: torch.nn.Module
    leaf: str
    path: str
    """Of the holder in the user's module; "" if it lies outside."""
    user: torch.nn.Module
    """The module that computes with it: of a list of parametrizations, the one that has them."""


def uses_of(module: torch.nn.Module, owner: torch.nn.Module, leaf: str, name: str) -> list[Use]:
    """Return all places where the parameter ``name`` of a module is held, inside of it and outside.

    The first one is ``leaf`` of ``owner``, which the user has named.
    """
    paths = {holder: path for path, holder in module.named_modules()}
    weight = owner._parameters[leaf]
    users = {
        part: user
        for user in paths
        if parametrize.is_parametrized(user)
        for part in user.parametrizations.values()
    }
    user = users.get(owner, owner)
    uses = [Use(f"`{name}` of {type(user).__name__}", owner, leaf, paths.get(owner, ""), user)]
    for holder in _holders(weight, list(paths)):
        path, user = paths.get(holder, ""), users.get(holder, holder)
        for other, p in _own(holder).items():
            if p is weight and (holder is not owner or other != leaf):
                place = f"`{path}.{other}`" if path else f"`{other}`"
                what = f"`{name}` (also {place} of {type(user).__name__})"
                uses.append(Use(what, holder, other, path, user))
    return uses


def assert_matrices(use: Use) -> None:
    """Refuse kernels of convolutions, and embeddings that change single rows."""
    if _is_kernel(use):
        raise TypeError(
            f"{use.what} must hold matrices, but is the kernel of a convolution: "
            "orthogonal matrices in it would not make the convolution orthogonal. Use "
            "BlockOrthogonalConv1d or BlockOrthogonalConv2d of geoopt_projunn.nn, or "
            "OrthogonalConv1d, OrthogonalConv2d or OrthogonalConv3d."
        )
    is_embedding = isinstance(use.holder, torch.nn.Embedding | torch.nn.EmbeddingBag)
    if use.leaf != "weight" or not is_embedding:
        return
    for option, why in (
        ("max_norm", "shortens rows in each forward pass"),
        ("padding_idx", "leaves one row as it is, while steps turn all of them"),
    ):
        value = getattr(use.holder, option)
        if value is not None:
            raise ValueError(
                f"{use.what} cannot be orthogonal with `{option}`, which {why}, got "
                f"{option}={value}; make the embedding without `{option}`."
            )


def _is_kernel(use: Use) -> bool:
    """Return whether a weight is a kernel, or what one is computed of entry by entry."""
    if not isinstance(use.user, _CONVOLUTIONS):
        return False
    if use.holder is use.user:
        # The latter two are of `torch.nn.utils.weight_norm` and of pruning.
        return use.leaf in ("weight", "weight_v", "weight_orig")
    # A matrix may be a factor of a kernel.
    part = use.holder._parameters[use.leaf]
    return part is not None and part.ndim > 2


_CONVOLUTIONS = (
    *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
    *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
)
# How many matrices the weights of modules hold, and the size of each.
_STACKS: tuple[tuple[tuple[type, ...], str, int, str], ...] = (
    ((torch.nn.LSTM, torch.nn.LSTMCell), "weight_hh weight_ih", 4, "hidden_size"),
    ((torch.nn.GRU, torch.nn.GRUCell), "weight_hh weight_ih", 3, "hidden_size"),
    ((torch.nn.MultiheadAttention,), "in_proj_weight", 3, "embed_dim"),
    ((OrthogonalGRU, OrthogonalGRUCell), "weight_gates", 2, "hidden_size"),
)


def assert_one_matrix(use: Use, weight: torch.nn.Parameter) -> None:
    """Refuse weights that stack several matrices."""
    for kinds, names, count, size in _STACKS:
        if (
            isinstance(use.holder, kinds)
            and use.leaf.startswith(tuple(names.split()))
            and weight.ndim == 2
            and weight.shape[0] == count * getattr(use.holder, size)
        ):
            raise ValueError(
                f"{use.what}, of shape {tuple(weight.shape)}, holds {count} matrices, one above "
                f"the other; give `blocks={count}` to make each of them orthogonal."
            )


def _holders(weight: Any, modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules that a parameter belongs to, among the given ones and all others."""
    inside = [module for module in modules if _holds(module, weight)]
    known = {id(module._parameters) for module in inside}
    if any(isinstance(d, dict) and id(d) not in known for d in gc.get_referrers(weight)):
        # A parameter does not know its modules. type(), since isinstance runs code of proxies.
        everything = (o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module))
        return [module for module in everything if _holds(module, weight)]
    return inside


def _holds(module: torch.nn.Module, weight: Any) -> bool:
    return any(p is weight for p in _own(module).values())


def _own(module: torch.nn.Module) -> Any:
    return module.__dict__.get("_parameters", {})
