"""Parameters keep their manifolds where a function replaces them by others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from geoopt.manifolds.base import Manifold

from ..arguments import assert_module
from ..backends.distributed import is_dtensor, misplacement
from ..geometry.checks import without_x
from ..low_rank_manifold import LowRankManifold
from ..nn.placing import put_on, sharding

__all__ = ["keep_manifolds"]


@contextmanager
def keep_manifolds(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Keep parameters on their manifolds while something replaces them.

    At the end of the context each new parameter, a DTensor or not, is on the manifold of the one
    that it has replaced. This works for all modules and for all manifolds of geoopt.

    Parameters
    ----------
    model : torch.nn.Module
        The model whose parameters are about to be replaced, by ``fully_shard``,
        ``parallelize_module``, ``distribute_module``, or anything else that keeps their names.

    Yields
    ------
    torch.nn.Module
        ``model``

    Raises
    ------
    RuntimeError
        If a parameter on a manifold was removed, and its module has none of that name any more,
        as after ``FullyShardedDataParallel``, which flattens matrices into vectors.
    TypeError
        If the new parameter is of another subclass of torch.Tensor.
    ValueError
        If its shape does not fit. If it is a DTensor for a matrix of this package, placed
        in a way that steps do not support: partial sums, two dimensions of the mesh for one axis, a
        mesh without this process, or, for k=None, parts of matrices.

    Notes
    -----
    Make the optimizer afterwards. After an exception inside of the context, parameters that have
    not been replaced are still on their manifolds.

    Examples
    --------
    ::

        with keep_manifolds(model):
            fully_shard(model)
        optimizer = ProjUNNRiemannianSGD(model.parameters(), lr=0.1)
    """
    assert_module("model", model)
    places = [
        _Place(f"{path}.{name}" if path else name, module, name, p.manifold)
        for path, module in model.named_modules()
        for name, p in module._parameters.items()
        if p is not None and isinstance(getattr(p, "manifold", None), Manifold)
    ]
    try:
        with sharding():
            yield model
    except BaseException:
        for place in places:
            if (p := place.successor(model)) is not None:
                put_on(p, place.manifold)
        raise
    successors = [(place, place.successor(model)) for place in places]
    for place, p in successors:
        if p is None:
            raise RuntimeError(
                f"`{place.path}` is on the {place.manifold}, but its module has no parameter of "
                "that name any more, as after FullyShardedDataParallel; use a function that does "
                "not flatten matrices, such as `fully_shard`."
            )
        fits, reason = place.manifold.check_point(p, explain=True)
        if not fits:
            raise ValueError(
                f"`{place.path}` is on the {place.manifold}, and what takes its place does not "
                f"fit: {without_x(reason)} Keep this parameter out of what replaces it."
            )
        put_on(p, place.manifold)
        if place.manifold is not getattr(p, "manifold", None):
            raise TypeError(
                f"`{place.path}` is on the {place.manifold}, and what takes its place must be a "
                f"torch.nn.Parameter, a geoopt.ManifoldParameter or a DTensor, got "
                f"{type(p).__name__}; keep this parameter out of what replaces it."
            )
    for place, p in successors:
        if is_dtensor(p) and isinstance(place.manifold, LowRankManifold):
            reason = misplacement(p, place.manifold.rank(p), place.manifold.blocks)
            if reason is not None:
                raise ValueError(
                    f"`{place.path}` on the {place.manifold} {reason}, got {p.placements}; build "
                    "the model anew and distribute it in another way: where tensor parallelism "
                    "has split a matrix, `shard_placement_fn` of `fully_shard` may split its other "
                    "axis. Or keep this parameter out by `ignored_params` of `fully_shard`, and "
                    "average its gradient over the processes of that mesh."
                )


class _Place(NamedTuple):
    path: str
    module: torch.nn.Module
    name: str
    manifold: Manifold

    def successor(self, model: torch.nn.Module) -> Any:
        module = self.module
        if all(module is not other for other in model.modules()):
            # The module itself was replaced.
            try:
                module = model.get_submodule(self.path.rpartition(".")[0])
            except AttributeError:
                return None
        return module._parameters.get(self.name)
