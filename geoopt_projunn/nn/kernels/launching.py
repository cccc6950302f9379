"""Where the Triton kernels of modules run, and how they are started."""

from typing import Any

import torch
from torch import Tensor

from ...backends.triton import support


def serve(x: Tensor) -> bool:
    """Return whether kernels take tensors like ``x``: on a GPU that the Triton backend serves.

    Where Triton interprets its kernels, as tests do, they take those of a CPU. What torch.compile
    traces consists of torch's operations, which it fuses itself.
    """
    if torch.compiler.is_compiling():
        return False
    return support.lack(x.device) is None if x.is_cuda else support.INTERPRETED and x.is_cpu


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel on the device of x, which need not be the current one."""
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *arguments, **constants)
