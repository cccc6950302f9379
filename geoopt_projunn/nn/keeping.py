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
            probe = fn(p.real.detach().new_empty(0))
            self._check_dtype(name, p, probe.dtype, "The module is as it was.")
        with _kept(self):
            return super()._apply(lambda t: _convert(fn, t), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        if local_metadata.get("assign_to_params_buffers", False):
            *_, errors = args
            for name, p in _on_manifolds(self):
                value = state_dict.get(prefix + name)
                if isinstance(value, Tensor):
                    try:
                        self._check_dtype(
                            name, p, value.dtype, "Load without `assign`, which converts."
                        )
                        if value.is_complex() != p.is_complex():
                            raise TypeError(_field_rule(self, name, p, value.dtype))
                    except TypeError as error:
                        errors.append(str(error))
                        return
        with _kept(self):
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_dtype(self, name: str, p: Tensor, dtype: torch.dtype, remedy: str) -> None:
        if dtype not in WIDE:
            raise TypeError(
                f"`{name}` must have one of the dtypes float32, float64, complex64, complex128, "
                f"got {dtype}: half precision cannot hold orthogonality. Keep this module in "
                f"float32; autocast leaves it there. {remedy}"
            )
        if dtype.is_complex and not p.is_complex():
            raise TypeError(f"{_field_rule(self, name, p, dtype)} {remedy}")


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
    # On one axis: to a tensor of four or five a memory format for images would apply.
    converted = fn(torch.view_as_real(plain).reshape(-1))
    if converted.is_complex():
        return fn(plain)
    return torch.view_as_complex(converted.view(*plain.shape, 2))


def _field_rule(module: torch.nn.Module, name: str, p: Tensor, dtype: torch.dtype) -> str:
    field, other = ("complex", "real") if p.is_complex() else ("real", "complex")
    return (
        f"`{name}` of {type(module).__name__} must be {field}, got {dtype}; "
        f"make a module of the {other} kind for {other} weights."
    )
