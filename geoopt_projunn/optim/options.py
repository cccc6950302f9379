"""What the options of a group of parameters may be."""

import difflib
from collections.abc import Iterable
from typing import Any

import torch

from ..arguments import checked_integer
from ..warning import warn

# As close as "momentun" to "momentum"; "weight_decay_scale" is no misspelt "weight_decay".
_MISSPELT = 0.85


def checked_stabilize(value: Any) -> int | None:
    """Return after how many steps points are put back on their manifolds, or None, or raise."""
    remedy = "use stabilize=None for never"
    return None if value is None else checked_integer("stabilize", value, remedy=remedy)


def check_have_values(group: dict[str, Any]) -> None:
    """Raise an error if an option is on the meta device and a parameter is not."""
    betas = group.get("betas", ())
    # This runs in every step.
    if torch.Tensor not in map(type, group.values()) and torch.Tensor not in map(type, betas):
        return
    names = [*group, *("betas" for _ in betas)]
    for name, value in zip(names, [*group.values(), *betas], strict=True):
        has_value = not (isinstance(value, torch.Tensor) and value.is_meta)
        if not has_value and not all(p.is_meta for p in group["params"]):
            raise ValueError(
                f"`{name}` must have a value, but is on the meta device; use a number, or a tensor "
                "on the device of the parameters."
            )


def warn_of_misspelt(group: dict[str, Any], known: Iterable[str]) -> None:
    """Warn of a key that is no option but looks like one.

    Other unknown keys are kept, as torch keeps them: they belong to schedulers and wrappers.
    """
    known = set(known)
    for key in group.keys() - known:
        meant = difflib.get_close_matches(str(key), known, n=1, cutoff=_MISSPELT)
        if meant:
            warn(
                f"`{key}` of a parameter group has no effect; if `{meant[0]}` is meant, rename it."
            )


def is_zero(value: Any) -> bool:
    """Return whether a number is zero, as far as the host knows without waiting."""
    return (not isinstance(value, torch.Tensor) or value.is_cpu) and bool(value == 0)


def on_device(value: Any, device: torch.device) -> Any:
    """Return a number, or a tensor of one number as a scalar that multiplies on a device."""
    if not isinstance(value, torch.Tensor):
        # In a product of one of numpy with a tensor, numpy's would be called before torch's.
        return value if type(value) in (float, int) else float(value)
    value = value.detach().reshape(())
    # Tensors on a GPU take a number from a CPU as it is.
    return value if value.device in (device, torch.device("cpu")) else value.to(device)
