"""Where the kernels can run. Triton itself is imported when a step is taken, and not before."""

import functools
import importlib.util
import os

import torch

OLDEST = (8, 0)
"""Compute capability of the first generation whose kernels are compiled in the tests."""


@functools.cache
def is_installed() -> bool:
    """Return whether there is a Triton to import."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Return whether kernels run in Python on a CPU, which is for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def lack(device: torch.device) -> str | None:
    """Return why a GPU cannot run the kernels, None if it can."""
    if not is_installed():
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "they are for NVIDIA's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        have, need = (".".join(map(str, version)) for version in (capability, OLDEST))
        return f"{device} has compute capability {have}, and they need {need}"
    return None
