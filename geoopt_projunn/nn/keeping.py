"""Modules whose parameters stay on their manifolds, whatever torch does to them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linalg.precision import WIDE
from .record import Record, assert_fits, other_field, put_on


def keep_manifolds(module: torch.nn.Module, path: str = "") -> None:
    """Put parameters of any module back on their manifolds whenever they are replaced.

    Parameters
    ----------
    module : torch.nn.Module
        Those of its own parameters are kept that are geoopt.ManifoldParameter now, or become so
        by being set.
    path : str
        of the module in a larger one, with a dot at its end; error messages name it
    """
    if isinstance(module._parameters, Record):
        module._parameters.path = path or module._parameters.path
        return
    module._parameters = Record(module, path, one_field=isinstance(module, KeepsManifolds))
    module.register_load_state_dict_pre_hook(_before_load)
    module.register_load_state_dict_post_hook(_after_load)


class KeepsManifolds(torch.nn.Module):
    """Put manifolds back that a conversion or a load has dropped.

    torch makes a plain parameter of a ManifoldParameter in ``.to("meta")`` and ``to_empty``, in
    ``load_state_dict(assign=True)``, and with
    ``torch.__future__.set_swap_module_params_on_conversion(True)``. Whether the parameters are
    new objects, which an optimizer made before does not know, is torch's rule unchanged: they
    are in the first two cases, not in the last.

    A Parameter that replaces one on a manifold is put there as well, by its name. One that does
    not fit is an error: a DTensor, as ``fully_shard`` makes them, another shape, half precision.

    A conversion changes precision and device, never real to complex or back: ``.double()`` makes
    complex128 of complex64. One to half precision is an error.
    """

    _parameters: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # Of a file that was written before modules kept a record.
        keep_manifolds(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, p, _ in self._parameters.on_manifolds():
            dtype = fn(p.real.detach().new_empty(0)).dtype
            refusal = _refusal(self, name, p, dtype, p.is_complex() or dtype.is_complex)
            if refusal is not None:
                raise TypeError(f"{refusal} The module is as it was.")
        return super()._apply(lambda t: _convert(fn, t), recurse)  # type: ignore[no-untyped-call]


def _before_load(
    module: torch.nn.Module, state_dict: Any, prefix: str, local_metadata: Any, *_: Any
) -> None:
    """Refuse what cannot take a parameter's place, before anything of the module is loaded."""
    record: Any = module._parameters
    kept = record.on_manifolds()
    if not local_metadata.get("assign_to_params_buffers", False):
        return
    for name, p, manifold in kept:
        value = state_dict.get(prefix + name)
        # torch reports what is no tensor, and another shape.
        if not isinstance(value, Tensor) or value.shape != p.shape:
            continue
        refusal = _refusal(module, prefix + name, p, value.dtype, value.is_complex())
        if refusal is not None:
            raise RuntimeError(f"{refusal} Loading without `assign` converts.")
        assert_fits(record.describe(name, prefix), value, manifold)
        # The manifold of the module wins over that of a parameter that is loaded.
        put_on(value, manifold)


def _after_load(module: torch.nn.Module, _: Any) -> None:
    """Put back what a load has swapped."""
    for _name in module._parameters.items():
        pass


def _refusal(
    module: torch.nn.Module, name: str, p: Tensor, dtype: torch.dtype, is_complex: bool
) -> str | None:
    """Say why a parameter on a manifold cannot have a dtype or become complex or real."""
    if dtype not in WIDE:
        return (
            f"`{name}` must have one of the dtypes float32, float64, complex64, complex128, "
            f"got {dtype}: half precision cannot hold orthogonality. Keep this module in "
            "float32; autocast leaves it there."
        )
    if isinstance(module, KeepsManifolds) and is_complex != p.is_complex():
        return other_field(f"`{name}` of {type(module).__name__}", p, dtype)
    return None


def _convert(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Apply a conversion made for real tensors to the parts of a complex one."""
    # Of a ManifoldParameter that fn returns as it is, torch could not make a Parameter.
    plain = t.detach()
    if not plain.is_complex():
        converted = fn(plain)
        return converted.real.contiguous() if converted.is_complex() else converted
    # On one axis: to a tensor of four or five a memory format for images would apply.
    converted = fn(torch.view_as_real(plain).reshape(-1))
    if converted.is_complex():
        return fn(plain)
    return torch.view_as_complex(converted.view(*plain.shape, 2))
