"""A plugin of pytest: Triton compiles for a GPU, and kernels run on the CPU as compiled.

To be loaded before Triton's driver is asked for, in a process of its own.
"""

import ctypes
import os
from operator import index
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime.driver import driver

from geoopt_projunn.backends.triton import launches, passing, support
from tests.backends._no_gpu import LAUNCH, kinds_of, size_of

from .machine import Launch, Machine
from .reading import Module, read

ARCHITECTURE = int(os.environ.get("PTX_ARCHITECTURE", "90"))
_MACHINE = Machine(seed=int(os.environ.get("PTX_SEED", "0")))
_compiled: dict[int, CompiledKernel] = {}
_modules: dict[int, Module] = {}
ran = {"launched by Triton": 0, "launched by C++": 0}


def _run(function: int, launch: Launch, spans: list[tuple[int, int]] | None) -> None:
    if function not in _modules:
        _modules[function] = read(_compiled[function].asm["ptx"])
    _MACHINE.run(_modules[function], launch, spans)


def _span(t: torch.Tensor) -> tuple[int, int]:
    """Return where the memory of a tensor is; a kernel may use all of what it is a view of."""
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


class _Launcher:
    """Run what Triton launches."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._kinds, self._metadata = kinds_of(source), metadata

    def __call__(self, *args: Any) -> None:
        own = [arg for arg, kind in zip(args[9:], self._kinds, strict=True) if kind != "constexpr"]
        tensors = [arg for arg in own if isinstance(arg, torch.Tensor)]
        values = [arg.data_ptr() if isinstance(arg, torch.Tensor) else index(arg) for arg in own]
        data = self._metadata
        launch = Launch(args[:3], data.num_warps, data.shared, values, data.launch_pdl)
        ran["launched by Triton"] += 1
        _run(args[4], launch, list(map(_span, tensors)))


def _launch(config: Any, function: int, arguments: Any, _: Any) -> int:
    """Run what our C++ launches, which knows addresses alone."""
    how = config.contents
    kinds = [kind for kind in kinds_of(_compiled[function].src) if kind != "constexpr"]
    values = [
        ctypes.c_uint64.from_address(arguments[index]).value % 2 ** size_of(kind)
        for index, kind in enumerate(kinds)
    ]
    ran["launched by C++"] += 1
    launch = Launch(tuple(how.grid), how.block[0] // 32, how.shared, values, bool(how.count))
    try:
        _run(function, launch, None)
    except Exception as error:  # C++ knows numbers alone
        print(error)
        return 719  # CUDA_ERROR_LAUNCH_FAILED
    return 0


_LAUNCH = LAUNCH(_launch)


class _Driver:
    """A GPU that is emulated."""

    launcher_cls = _Launcher
    _loaded = 0

    @property
    def utils(self) -> "_Driver":
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        self._loaded += 1
        return 1, self._loaded, 0, 0, 1024

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCHITECTURE, 32)


_init_handles = CompiledKernel._init_handles


def _remember(self: CompiledKernel) -> None:
    _init_handles(self)
    _compiled[self.function] = self


def pytest_configure() -> None:
    """Take the emulated GPU for one, which serves the tensors of a CPU."""
    CompiledKernel._init_handles = _remember
    driver.set_active(_Driver())
    address = ctypes.cast(_LAUNCH, ctypes.c_void_p).value
    launches.driver = lambda: address
    support.INTERPRETED = True
    # As on a GPU that can, and with as many launches as there are.
    passing.overlaps = lambda device, programs: ARCHITECTURE >= 90


def pytest_unconfigure() -> None:
    """There is nothing to unload."""
    for kernel in _compiled.values():
        kernel.module = None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what ran."""
    terminalreporter.write_line(f"kernels run as compiled: {ran}")
