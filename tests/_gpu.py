"""What the tests on a GPU share."""

import contextlib
import warnings

import torch


@contextlib.contextmanager
def no_waiting():
    """Raise an error where the host waits for the GPU."""
    with warnings.catch_warnings():
        # torch announces that this mode is young, once.
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
