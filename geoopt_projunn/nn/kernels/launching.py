"""Where the Triton kernels of modules run, and how they are started."""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def serve(x: Tensor) -> bool:
    """Return whether kernels take tensors like ``x``: on a GPU that Triton compiles for.

    Where Triton interprets its kernels, as tests do, they take those of a CPU. What torch.compile
    traces consists of torch's operations, which it fuses itself.
    """
    if not (x.is_cuda or (_INTERPRETED and x.is_cpu)) or torch.compiler.is_compiling():
        return False
    return _has_triton() and (_INTERPRETED or _is_recent(x.device))


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel on the device of x, which need not be the current one."""
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *arguments, **constants)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _is_recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
