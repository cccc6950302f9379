"""Which parameters of a module belong on which manifold, by name."""

from collections.abc import ItemsView, Iterator
from typing import Any

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from torch._subclasses import FakeTensor

from ..linalg.precision import WIDE


class Record(dict[str, Any]):
    """Takes the place of ``module._parameters`` and puts parameters back on their manifolds.

    A name belongs on the manifold of the last ManifoldParameter that it had. All of torch's ways
    to replace a parameter end in ``module._parameters[name] = p``: attributes,
    ``register_parameter``, conversions, loads with ``assign`` and FSDP. A plain Parameter that
    comes in under such a name becomes a ManifoldParameter here, the same object, or an error is
    raised.

    torch.utils.swap_tensors makes a parameter plain without a word to the dictionary.
    Conversions that do so iterate over :meth:`items`, which looks at each parameter again when
    the loop goes on.
    """

    owner: str
    path: str
    one_field: bool

    def __init__(self, module: torch.nn.Module, path: str = "", one_field: bool = False) -> None:
        super().__init__()
        self.owner, self.path, self.one_field = type(module).__name__, path, one_field
        for name, p in module._parameters.items():
            self[name] = p

    @property
    def manifolds(self) -> dict[str, Manifold]:
        """The manifolds by name."""
        # Copies and files set the items before the attributes. A __new__ would make the class
        # opaque to torch.compile.
        manifolds: dict[str, Manifold] = self.__dict__.setdefault("_manifolds", {})
        return manifolds

    def __setitem__(self, name: str, p: Any) -> None:
        manifold = self.manifold(name)
        if manifold is not None and is_plain(p):
            assert_fits(self.describe(name), p, manifold)
            old = self.get(name)
            if self.one_field and old is not None and p.is_complex() != old.is_complex():
                raise TypeError(other_field(self.describe(name), old, p.dtype))
            put_on(p, manifold)
        super().__setitem__(name, p)
        self.manifold(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.manifolds.pop(name, None)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return names and parameters, which stay on their manifolds if a loop swaps them."""
        return _Items(self)

    def manifold(self, name: str) -> Manifold | None:
        """Return the manifold that a name belongs on, None for a plain parameter."""
        # The user may have set another one on the parameter itself.
        manifold = getattr(self.get(name), "manifold", None)
        if isinstance(manifold, Manifold):
            self.manifolds[name] = manifold
        return self.manifolds.get(name)

    def on_manifolds(self) -> list[tuple[str, Any, Manifold]]:
        """Return names, parameters and manifolds of what belongs on one."""
        found = [(name, p, self.manifold(name)) for name, p in self.items() if p is not None]
        return [(name, p, manifold) for name, p, manifold in found if manifold is not None]

    def describe(self, name: str, path: str | None = None) -> str:
        """Return what error messages call a parameter, with the path of its module if known."""
        return f"`{self.path if path is None else path}{name}` of {self.owner}"


class _Items(ItemsView[str, Any]):
    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._record = record

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        record = self._record
        for name in record:
            manifold = record.manifold(name)
            yield name, record[name]
            p: Any = record.get(name)
            if manifold is not None and is_plain(p):
                # Of any dtype, as in the conversions that keep the ManifoldParameter.
                assert_kind(record.describe(name), p, manifold)
                put_on(p, manifold)


def is_plain(p: Any) -> bool:
    """Return whether a value is a parameter on no manifold, and no stand-in without values."""
    if not isinstance(p, torch.nn.Parameter) or isinstance(p, FakeTensor):
        return False
    return not hasattr(p, "manifold")


def put_on(p: torch.Tensor, manifold: Manifold) -> None:
    """Make a plain parameter a ManifoldParameter, the same object.

    Optimizers, hooks and weak references to it stay valid; torch.utils.swap_tensors changes
    classes in the same way.
    """
    if type(p) is torch.nn.Parameter:
        p.__class__ = geoopt.ManifoldParameter
    if isinstance(p, geoopt.ManifoldParameter):
        p.manifold = manifold


def other_field(what: str, old: torch.Tensor, dtype: torch.dtype) -> str:
    """Say that a real parameter cannot become complex in its module, or the other way round."""
    field, other = ("complex", "real") if old.is_complex() else ("real", "complex")
    return (
        f"{what} must be {field}, got {dtype}; make a module of the {other} kind for {other} "
        "weights."
    )


def assert_fits(what: str, p: torch.Tensor, manifold: Manifold) -> None:
    """Raise an error unless a tensor can be a parameter on a manifold.

    Raises
    ------
    TypeError
        If it is a DTensor or of another subclass, or its dtype is not supported.
    ValueError
        If its shape does not fit.
    """
    assert_kind(what, p, manifold)
    fits, reason = manifold.check_point(p, explain=True)
    if not fits:
        error = ValueError if p.dtype in WIDE else TypeError
        raise error(f"{what} is on the {manifold}, where {reason} {_REMEDY}")


def assert_kind(what: str, p: torch.Tensor, manifold: Manifold) -> None:
    """Raise TypeError for a DTensor and other subclasses, which cannot be on a manifold."""
    assert_whole(what, p, manifold)
    kind = type(p)
    if not isinstance(p, geoopt.ManifoldTensor) and kind not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(
            f"{what} is on the {manifold} and must be a torch.nn.Parameter or a "
            f"geoopt.ManifoldParameter, got {kind.__name__}. {_REMEDY}"
        )


def assert_whole(what: str, p: torch.Tensor, manifold: Manifold) -> None:
    """Raise TypeError for a DTensor."""
    if type(p).__name__ == "DTensor":
        raise TypeError(
            f"{what} is on the {manifold}, which does not support DTensor parameters yet. Keep it "
            "whole on every rank: name it in `ignored_params` of `fully_shard`, or shard only the "
            "other submodules, and average its gradient over the ranks. Build the model anew, as "
            "other parameters may be DTensors already."
        )


_REMEDY = "To take it off the manifold, delete the attribute before you set it."
