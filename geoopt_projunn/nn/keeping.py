"""Modules whose parameters stay on their manifolds, whatever torch does to them.

On import, this registers a hook of torch's that sees every parameter that a module registers.
It acts on parameters on this package's manifolds, and on those that take the place of one.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import geoopt
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..backends.distributed import is_dtensor, local_of
from ..linalg.precision import WIDE
from ..low_rank_manifold import low_rank_manifold_of
from .placing import dtype_misfit
from .record import Record


def record_manifolds(module: torch.nn.Module, path: str = "") -> Record | None:
    """Put parameters of any module back on their manifolds whenever they are replaced.

    Parameters
    ----------
    module : torch.nn.Module
        Those of its own parameters are kept that are geoopt.ManifoldParameter now, or become so
        by being set.
    path : str
        of the module in a larger one, with a dot at its end; error messages name it

    Returns
    -------
    Record or None
        What ``module._parameters`` is then. None where another library has put a dictionary of
        its own there, which stays.
    """
    record: Any = module._parameters
    if isinstance(record, Record):
        record.path = path or record.path
        record.note()
        return record
    if type(record) not in (dict, OrderedDict):
        return None
    counterpart = module._counterpart() if isinstance(module, KeepsManifolds) else None
    record = Record(record, type(module).__name__, path, counterpart)
    module._parameters = record
    if counterpart is None and _after_load not in module._load_state_dict_post_hooks.values():
        # register_load_state_dict_pre_hook would refer to this module weakly. Shallow copies share
        # the hooks of the original, and could not load once the original is gone.
        module._register_load_state_dict_pre_hook(record.detach_loaded)
        module.register_load_state_dict_post_hook(_after_load)
    return record


def _register(module: torch.nn.Module, name: str, p: torch.nn.Parameter) -> None:
    """Keep every parameter on such a manifold, in whatever module it is registered."""
    record = module._parameters
    if isinstance(record, Record):
        try:
            record.admit(name, p)
        except (TypeError, ValueError):
            if isinstance(module, torch.nn.RNNBase):
                # It runs with a list of its own, in which it has put the parameter by now.
                module._init_flat_weights()
            raise
        return
    if isinstance(p, geoopt.ManifoldTensor) and low_rank_manifold_of(p) is not None:
        record_manifolds(module)


register_module_parameter_registration_hook(_register)


def _after_load(module: torch.nn.Module, _: Any) -> None:
    """Put back what a load has swapped."""
    record = record_manifolds(module)
    if record is not None:
        record.restore_all()


class KeepsManifolds(torch.nn.Module):
    """A module of this package: its parameters stay on their manifolds, and real or complex.

    ``.to("meta")``, ``to_empty``, ``load_state_dict(assign=True)`` and
    ``torch.__future__.set_swap_module_params_on_conversion(True)`` replace a ManifoldParameter by a
    plain parameter. This class puts it back on its manifold. As in any module, the first three make
    new objects, so make the optimizer afterwards; a swap keeps the objects.

    A Parameter that is set in the place of one on a manifold is put on it as well. One that does
    not fit is an error: another shape, half precision, complex for real, and outside of
    :func:`geoopt_projunn.distributed.keep_manifolds` a DTensor, as ``fully_shard`` makes them.
    Then the module does not change, also in a load, which reports the error with all others. A load
    without ``assign`` copies values: it converts half precision, and real numbers to complex ones;
    complex values for real ones are an error there, too. To get a plain parameter, delete the
    attribute first.

    ``.double()`` converts complex64 to complex128. A conversion to half precision, or of a real
    module to a complex dtype, is an error, and does not change the module. torch converts a larger
    model module by module: those before this one are converted by then.
    """

    _parameters: Any

    def _counterpart(self) -> str:
        """Return the name of the class for the other field, "" where there is none."""
        own = [kind for kind in type(self).__mro__ if kind.__module__.startswith(__package__)]
        name = own[0].__name__
        for field, other in (("Orthogonal", "Unitary"), ("Unitary", "Orthogonal")):
            if name.startswith(field):
                return name.replace(field, other, 1)
        return ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A file that was written before modules kept a record has none.
        record_manifolds(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        record = record_manifolds(self)
        if record is not None:
            _assert_convertible(record, fn, self._counterpart())
        return super()._apply(lambda t: _convert(fn, t), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        record = record_manifolds(self)
        if record is not None:
            assign = local_metadata.get("assign_to_params_buffers", False)
            refusals = _refusals(record, state_dict, prefix, assign)
            error_msgs.extend(refusals)
            for name, p in self._parameters.items() if refusals else ():
                if _same_shape(state_dict.get(prefix + name), p):
                    state_dict[prefix + name] = p
            record.detach_loaded(state_dict, prefix, local_metadata)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if record is not None:
            record.restore_all()


def _assert_convertible(record: Record, fn: Callable[[Tensor], Tensor], counterpart: str) -> None:
    for name, p, _ in record.on_manifolds():
        dtype = fn(local_of(p.detach()).real.new_empty(0)).dtype
        fields = p.is_complex(), p.is_complex() or dtype.is_complex
        refusal = dtype_misfit(record.describe(name), dtype, *fields, counterpart)
        if refusal is not None:
            raise TypeError(f"{refusal} This module is as it was.")


def _refusals(record: Record, state_dict: Any, prefix: str, assign: bool) -> list[str]:
    """Say what cannot take the place of parameters on manifolds, or be copied into them."""
    found = []
    for name, p, _ in record.on_manifolds():
        value = state_dict.get(prefix + name)
        # torch reports what is no tensor, and another shape.
        if not _same_shape(value, p):
            continue
        # A copy converts; but torch would drop imaginary parts.
        refusable = assign or (value.is_complex() and not p.is_complex())
        error = record.misfit(name, value, prefix) if refusable else None
        if error is not None:
            half = value.dtype.is_floating_point and value.dtype not in WIDE
            found.append(f"{error} Loading without `assign` converts." if half else str(error))
    return found


def _same_shape(value: Any, p: Tensor | None) -> bool:
    return isinstance(value, Tensor) and p is not None and value.shape == p.shape


def _convert(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Apply a conversion made for real tensors to the parts of a complex one."""
    # A conversion that changes nothing returns its argument; torch.nn.Parameter refuses one of
    # a class of geoopt's.
    plain = t.detach()
    if is_dtensor(plain):
        return fn(plain)
    if not plain.is_complex():
        converted = fn(plain)
        return converted.real.contiguous() if converted.is_complex() else converted
    # On one axis: to a tensor of four or five a memory format for images would apply.
    converted = fn(torch.view_as_real(plain).reshape(-1))
    if converted.is_complex():
        return fn(plain)
    return torch.view_as_complex(converted.view(*plain.shape, 2))
