"""Which modes torch is in, asked of private names of torch in this one place.

If a version of torch lacks one of the names, a warning says so, and the answer is the one with
which steps and layers are right, though slower.
"""

import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch.autograd import forward_ad


def _private(name: str, instead: Callable[..., Any]) -> Callable[..., Any]:
    """Return a private function of torch, or what is called instead if there is none."""
    try:
        found: Callable[..., Any] = attrgetter(name)(torch)
    except AttributeError:
        warnings.warn(
            f"torch {torch.__version__} has no `torch.{name}`, which this package asks whether it "
            "may use its fast functions: steps and layers are right but slower. Update the "
            "package, or use an older torch.",
            stacklevel=2,
        )
        return instead
    return found


def _yes(*_: Any) -> bool:
    return True


_transforms = _private("_C._are_functorch_transforms_active", _yes)
_is_legacy_batch = _private("_C._functorch.is_legacy_batchedtensor", _yes)
_dispatch_modes = _private("_C._len_torch_dispatch_stack", _yes)
_is_profiled = _private("_C._autograd._profiler_enabled", _yes)
_autocast = _private(
    "_C._is_any_autocast_enabled",
    lambda: any(map(torch.is_autocast_enabled, ("cpu", "cuda"))),
)


def is_transformed() -> bool:
    """Return whether torch.func (``grad``, ``vmap``, ``jvp``, …) transforms the call."""
    return bool(_transforms())


def in_forward_mode() -> bool:
    """Return whether derivatives are taken in forward mode."""
    return bool(getattr(forward_ad, "_current_level", 0) >= 0)


def is_watched() -> bool:
    """Return whether a mode of torch or a profiler has to be told of each operation."""
    return bool(_dispatch_modes() > 0 or _is_profiled())


def is_autocast() -> bool:
    """Return whether autocast is on for any device; ``torch.is_autocast_enabled`` knows no meta."""
    return bool(_autocast())


def holds_gradients_of_many(t: torch.Tensor) -> bool:
    """Return whether a tensor is what ``is_grads_batched`` passes to a backward function."""
    return bool(_is_legacy_batch(t))


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured, so that nothing may wait for the GPU."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
