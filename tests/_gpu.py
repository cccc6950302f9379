"""What the tests on a GPU share."""

import contextlib
import multiprocessing
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


class AnotherProcess:
    """Runs functions in one process beside this one, and after an error in a new one.

    An error while a CUDA graph is recorded leaves torch's random numbers and memory on the GPU
    unusable for the rest of the process.
    """

    TIMEOUT = 120
    """Seconds for a call."""

    def __init__(self):
        self._pool = None

    def __call__(self, function, *arguments):
        if self._pool is None:
            # After CUDA has started, a forked process could not use it.
            self._pool = multiprocessing.get_context("spawn").Pool(1)
        try:
            return self._pool.apply_async(function, arguments).get(self.TIMEOUT)
        except BaseException:
            self.close()
            raise

    def close(self):
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None
