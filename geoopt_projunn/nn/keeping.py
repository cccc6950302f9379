"""Modules whose parameters stay on their manifolds, whatever torch does to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import geoopt
import torch
from torch import Tensor

from ..linalg.precision import WIDE


class KeepsManifolds(torch.nn.Module):
    """Put manifolds back that a conversion or a load has dropped.

    torch makes a plain parameter of a ManifoldParameter in ``.to("meta")`` and ``to_empty``, in
    ``load_state_dict(assign=True)``, and with
    ``torch.__future__.set_swap_module_params_on_conversion(True)``. Whether the parameters are
    new objects, which an optimizer made before does not know, is torch's rule unchanged: they
    are in the first two cases, not in the last.

    A conversion changes precision and device, never real to complex or back: ``.double()`` makes
    complex128 of complex64. One to half precision is an error.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, p in _on_manifolds(self):
            dtype = fn(p.real.detach().new_empty(0)).dtype
            refusal = self._refusal(name, p, dtype, p.is_complex() or dtype.is_complex)
            if refusal is not None:
                raise TypeError(f"{refusal} The module is as it was.")
        with _kept(self):
            return super()._apply(lambda t: _convert(fn, t), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        if local_metadata.get("assign_to_params_buffers", False):
            *_, errors = args
            for name, p in _on_manifolds(self):
                value = state_dict.get(prefix + name)
                if not isinstance(value, Tensor):
                    continue
                refusal = self._refusal(name, p, value.dtype, value.is_complex())
                if refusal is not None:
                    errors.append(f"{refusal} Loading without `assign` converts.")
                    return
        with _kept(self):
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _refusal(self, name: str, p: Tensor, dtype: torch.dtype, is_complex: bool) -> str | None:
        """Say why a parameter on a manifold cannot have a dtype or become complex or real."""
        if dtype not in WIDE:
            return (
                f"`{name}` must have one of the dtypes float32, float64, complex64, complex128, "
                f"got {dtype}: half precision cannot hold orthogonality. Keep this module in "
                "float32; autocast leaves it there."
            )
        if is_complex != p.is_complex():
            field, other = ("complex", "real") if p.is_complex() else ("real", "complex")
            return (
                f"`{name}` of {type(self).__name__} must be {field}, got {dtype}; "
                f"make a module of the {other} kind for {other} weights."
            )
        return None


def _on_manifolds(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, p)
        for name, p in module.named_parameters(recurse=False)
        if isinstance(p, geoopt.ManifoldParameter)
    ]


@contextmanager
def _kept(module: torch.nn.Module) -> Iterator[None]:
    manifolds = {name: p.manifold for name, p in _on_manifolds(module)}
    try:
        yield
    finally:
        for name, manifold in manifolds.items():
            put_on(getattr(module, name), manifold)


def put_on(p: Tensor, manifold: geoopt.Manifold) -> None:
    """Make a plain parameter a ManifoldParameter, the same object.

    Optimizers, hooks and weak references to it stay valid; torch.utils.swap_tensors changes
    classes in the same way.
    """
    if type(p) is torch.nn.Parameter:
        p.__class__ = geoopt.ManifoldParameter
    if isinstance(p, geoopt.ManifoldParameter):
        p.manifold = manifold


def _convert(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Apply a conversion made for real tensors to the parts of a complex one."""
    # Of a ManifoldParameter that fn returns as it is, torch could not make a Parameter.
    plain = t.detach()
    if not plain.is_complex():
        converted = fn(plain)
        return converted.real.contiguous() if converted.is_complex() else converted
    converted = fn(torch.view_as_real(plain))
    return fn(plain) if converted.is_complex() else torch.view_as_complex(converted)
