"""Real compiled kernels, and a driver that only takes notes."""

import ctypes
from contextlib import contextmanager
from typing import NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from geoopt_projunn.backends.triton import launches

OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class Seen(NamedTuple):
    """What a driver is asked to launch."""

    grid: tuple
    stream: int
    function: int
    threads: int
    shared: int
    overlaps: bool
    args: list


class Attribute(ctypes.Structure):
    """As in cuda.h."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("number", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class Config(ctypes.Structure):
    """As in cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(Config),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


class Launcher:
    """Note what Triton would launch."""

    seen: list

    def __init__(self, source, metadata):
        self.kinds, self.metadata = kinds_of(source), metadata

    def __call__(self, *args):
        if 0 in args[:3]:
            return
        given = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args[9:]]
        # The grid, the stream, the function; then how it is launched and what hooks are told.
        own = [
            arg % 2 ** size_of(kind)
            for arg, kind in zip(given, self.kinds, strict=True)
            if kind != "constexpr"
        ]
        data = self.metadata
        self.seen.append(
            Seen(args[:3], *args[3:5], 32 * data.num_warps, data.shared, data.launch_pdl, own)
        )


def kinds_of(source):
    return list(source.signature.values())


def size_of(kind):
    """Return the bits of an argument."""
    return 64 if kind.startswith("*") else int(kind[1:])


class Driver:
    """A GPU that is not there."""

    launcher_cls = Launcher
    stream = 7
    loaded = 0

    def __init__(self, kernels):
        self._kernels = kernels
        self.bound = 0
        self.errors = []
        """What the next launches return in place of 0."""
        self.launch = LAUNCH(self._launch)

    def _launch(self, config, function, arguments, extra):
        if self.errors and (error := self.errors.pop(0)):
            return error
        if 0 in config.contents.grid[:]:
            return 1
        (compiled,) = {
            compiled
            for kernel in self._kernels
            for cache, *_ in kernel.device_caches.values()
            for compiled in cache.values()
            if compiled.function == function
        }
        kinds = [kind for kind in kinds_of(compiled.src) if kind != "constexpr"]
        given = [ctypes.c_uint64.from_address(arguments[i]).value for i in range(len(kinds) + 2)]
        # Two addresses of memory that these kernels do not need.
        if given[-2:] != [0, 0]:
            return 1
        own = [value % 2 ** size_of(kind) for value, kind in zip(given, kinds, strict=False)]
        how = config.contents
        attributes = [(a.id, a.number) for a in how.attributes[: how.count]]
        if attributes not in ([], [(OVERLAP, 1)]) or how.block[1:] != [1, 1]:
            return 1
        Launcher.seen.append(
            Seen(
                tuple(how.grid),
                how.stream,
                function,
                how.block[0],
                how.shared,
                bool(attributes),
                own,
            )
        )
        return 0

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
    own = Driver(kernels)
    run = JITFunction.run

    def counted(self, *args, **kwargs):
        own.bound += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", counted)
    monkeypatch.setattr(Launcher, "seen", [], raising=False)
    address = ctypes.cast(own.launch, ctypes.c_void_p).value
    monkeypatch.setattr(launches, "driver", lambda: address)
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
