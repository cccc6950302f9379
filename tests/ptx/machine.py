"""Launches: the warps of all programs, in any order."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from .memory import Global, Shared
from .operands import BITS, THREADS
from .reading import Fault, Module
from .warps import Code, Warp


class Launch(NamedTuple):
    """What a driver is asked for."""

    grid: tuple[int, ...]
    warps: int
    shared: int
    """Bytes that the threads of a program share."""
    arguments: Sequence[int]
    """Addresses and numbers, as bits."""
    overlaps: bool
    """Whether it may start before the previous kernel has ended."""


class _Program(NamedTuple):
    """Warps that meet at barriers."""

    shared: Shared
    waiting: dict[int, int]
    """Where those are that have come to a barrier, or to their end (-1)."""
    warps: list[Iterator[int]]


class Machine:
    """A GPU, on which each warp has a priority drawn at random.

    Of all that can run, the warp of the highest priority does, up to its next barrier. So one
    program may be far ahead of another one, or of the other half of itself.

    Parameters
    ----------
    seed : int
        of the order
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._codes: dict[int, Code] = {}
        self._constants: list[np.ndarray] = []

    def run(self, module: Module, launch: Launch, spans: Sequence[tuple[int, int]] | None) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        module : Module
            whose kernel it is
        launch : Launch
            how it is launched
        spans : sequence, optional
            first and last addresses of its arguments, if they are known

        Raises
        ------
        Fault
            If a GPU would not do it, or not always do it alike.
        """
        code = self._codes.setdefault(id(module), Code(module))
        symbols = {}
        for name, data in module.constants.items():
            self._constants.append(np.frombuffer(data, np.uint8).copy())
            symbols[name] = self._constants[-1].ctypes.data
        if spans is not None and symbols:
            spans = [*spans, *((c.ctypes.data, c.ctypes.data + c.size) for c in self._constants)]
        parameters = module.functions[module.kernel].parameters
        # Triton adds some memory of its own, which these kernels do not need.
        values = [*launch.arguments, *[0] * (len(parameters) - len(launch.arguments))]
        given = {
            name: np.full(THREADS, value % 2**bits, BITS[bits])
            for (name, bits), value in zip(parameters.items(), values, strict=True)
        }
        memory, programs = Global(spans), []
        for place in product(*map(range, launch.grid)):
            shared = Shared(launch.shared)
            warps = [
                Warp(
                    *(code, number, place, launch.grid, THREADS * launch.warps),
                    *(memory, shared, symbols),
                    must_wait=launch.overlaps,
                ).run(given)
                for number in range(launch.warps)
            ]
            programs.append(_Program(shared, {}, warps))
        # GPUs do not warn of what is not finite.
        with np.errstate(all="ignore"):
            self._run(programs)

    def _run(self, programs: list[_Program]) -> None:
        every = [(program, number) for program in programs for number in range(len(program.warps))]
        ready = [every[index] for index in self._random.permutation(len(every))]
        while ready:
            program, number = ready.pop()
            program.waiting[number] = next(program.warps[number], -1)
            if len(program.waiting) < len(program.warps):
                continue
            places = set(program.waiting.values())
            if len(places) != 1:
                raise Fault("warps wait for each other at different places")
            program.waiting.clear()
            if places != {-1}:
                program.shared.barrier()
                for one in self._random.permutation(len(program.warps)):
                    ready.insert(int(self._random.integers(len(ready) + 1)), (program, int(one)))
