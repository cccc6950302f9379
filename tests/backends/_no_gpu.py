"""Real compiled kernels, and a launcher that only takes notes."""

from contextlib import contextmanager

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class Launcher:
    """Note what a driver would launch."""

    seen: list

    def __init__(self, source, metadata):
        self.overlaps = metadata.launch_pdl

    def __call__(self, *args):
        given = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args[9:]]
        # The grid, the stream, the function and how it is launched; then what hooks are told.
        self.seen.append((list(args[:3]), *args[3:6], self.overlaps, given))


class Driver:
    """A GPU that is not there."""

    launcher_cls = Launcher
    stream = 7
    loaded = 0

    @property
    def utils(self):
        return self

    def get_device_properties(self, device):
        return {"max_shared_mem": 2**17}

    def load_binary(self, *_):
        self.loaded += 1
        return 1, self.loaded, 0, 0, 1024

    def unload_module(self, module):
        pass

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return self.stream

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@contextmanager
def no_gpu(monkeypatch, *kernels):
    """Compile for a GPU and launch nothing; count what Triton binds."""
    own = Driver()
    own.bound = 0
    run = JITFunction.run

    def counted(self, *args, **kwargs):
        own.bound += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", counted)
    monkeypatch.setattr(Launcher, "seen", [], raising=False)
    for kernel in kernels:
        monkeypatch.setattr(
            kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder)
        )
    driver.set_active(own)
    try:
        yield own
    finally:
        # There is nothing to unload, which Triton 3.8 would ask the next driver for.
        for kernel in kernels:
            for cache, *_ in kernel.device_caches.values():
                for compiled in cache.values():
                    compiled.module = None
        driver.set_active(None)
