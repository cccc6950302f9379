"""Put a parameter on a manifold, as the same object, and say why another one does not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from torch._subclasses import FakeTensor

from ..backends.distributed import is_dtensor
from ..geometry.checks import dtype_rule, without_x
from ..linalg.precision import WIDE


def is_plain(p: Any) -> bool:
    """Return whether a value is a parameter that could be put on a manifold."""
    if not isinstance(p, torch.nn.Parameter) or isinstance(p, FakeTensor):
        return False
    # It traces no change of a class. What a traced functional_call sets, it sets back.
    if torch.compiler.is_compiling():
        return False
    return not hasattr(p, "manifold")


def put_on(p: Any, manifold: Manifold) -> None:
    """Make a plain parameter a ManifoldParameter, the same object.

    Optimizers and hooks that refer to it stay valid; torch.utils.swap_tensors changes classes in
    the same way.
    """
    if type(p) is torch.nn.Parameter:
        p.__class__ = geoopt.ManifoldParameter
    if isinstance(p, geoopt.ManifoldParameter) or is_dtensor(p):
        p.manifold = manifold


def take_off(p: Any) -> None:
    """Undo :func:`put_on`."""
    if type(p) is geoopt.ManifoldParameter:
        del p.manifold
        p.__class__ = torch.nn.Parameter
    elif is_dtensor(p) and hasattr(p, "manifold"):
        del p.manifold


def misfit(
    what: str,
    p: torch.Tensor,
    manifold: Manifold,
    *,
    counterpart: str | None = None,
    old: torch.Tensor | None = None,
) -> Exception | None:
    """Return the error that says why a tensor cannot be a parameter on a manifold, if so.

    Parameters
    ----------
    what : str
        what messages call it, "`weight` of Linear"
    p : torch.Tensor
        the tensor
    manifold : geoopt.Manifold
        the manifold
    counterpart : str or None
        None for a module of somebody else, which may be in half precision for inference
    old : torch.Tensor, optional
        what it takes the place of

    Returns
    -------
    Exception or None
        TypeError for another class or dtype, ValueError for another shape.
    """
    try:
        assert_kind(what, p, manifold, old)
    except TypeError as error:
        return error
    if counterpart is None and (p.is_floating_point() or p.is_complex()):
        p = torch.empty(p.shape, dtype=torch.float32, device="meta")
    fits, reason = manifold.check_point(p, explain=True)
    # What was offloaded has no numbers, and no shape to compare with.
    if fits and old is not None and old.numel() and old.shape != p.shape:
        size = tuple(old.shape)
        fits, reason = False, f"it must have shape {size}, got {tuple(p.shape)}; {_OR_ANOTHER}."
    if fits:
        return None
    start = f"{what} is on the {manifold} and does not fit: {without_x(reason)}"
    return ValueError(f"{start} {_REMEDY}") if p.dtype in WIDE else TypeError(start)


def dtype_misfit(
    what: str, dtype: torch.dtype, is_complex: bool, to_complex: bool, counterpart: str
) -> str | None:
    """Say why a parameter of a module of this package cannot have a dtype, if so.

    Parameters
    ----------
    what : str
        what messages call it
    dtype : torch.dtype
        the new dtype
    is_complex, to_complex : bool
        whether the parameter is complex, and would be
    counterpart : str
        the class for the other field
    """
    if dtype not in WIDE:
        return f"{what} does not fit: {without_x(dtype_rule('x', dtype))}"
    if is_complex == to_complex:
        return None
    field, other = ("complex", "real") if is_complex else ("real", "complex")
    # Both kinds of convolutions have complex weights.
    remedy = (
        f"; for {other} weights use {counterpart}" if counterpart.startswith(_OF[other]) else ""
    )
    return f"{what} must be {field}, got {dtype}{remedy}."


_OF = {"real": "Orthogonal", "complex": "Unitary"}


def assert_kind(
    what: str, p: torch.Tensor, manifold: Manifold, old: torch.Tensor | None = None
) -> None:
    """Raise TypeError for subclasses that cannot be on a manifold, as :func:`assert_whole` does."""
    assert_whole(what, p, manifold, old)
    kind = type(p)
    known = isinstance(p, geoopt.ManifoldTensor) or is_dtensor(p)
    if not known and kind not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(
            f"{what} is on the {manifold} and must be a torch.nn.Parameter or a "
            f"geoopt.ManifoldParameter, got {kind.__name__}. {_REMEDY}"
        )


def assert_whole(
    what: str, p: torch.Tensor, manifold: Manifold, old: torch.Tensor | None = None
) -> None:
    """Raise TypeError for a DTensor, outside of :func:`sharding` and unless it replaces one."""
    if is_dtensor(p) and not (_sharding or (old is not None and is_dtensor(old))):
        raise TypeError(
            f"{what} is on the {manifold}, and a DTensor is to take its place. Build the model "
            "anew, as other parameters may be DTensors already, and distribute it inside of `with "
            "geoopt_projunn.distributed.keep_manifolds(model):`. Or keep this parameter whole on "
            "every rank: name it in `ignored_params` of `fully_shard`, and average its gradient."
        )


_sharding: list[None] = []
"""An entry for each context of :func:`sharding`."""


@contextmanager
def sharding() -> Iterator[None]:
    """Let DTensors take the place of parameters on manifolds, in all threads."""
    _sharding.append(None)
    try:
        yield
    finally:
        _sharding.pop()


_OR_ANOTHER = "for another one set a geoopt.ManifoldParameter"
_REMEDY = "To take it off the manifold, delete the attribute before you set it."
