"""32 threads that run in step: how they branch, what they exchange, and how they use memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .instructions import LANES, Action, Mask, action_of
from .memory import Global, Shared
from .operands import THREADS
from .reading import Fault, Function, Instruction, Module, members

_OF_ORDER = ("bra", "ret", "bar", "griddepcontrol", "call")


class Code:
    """The functions of a module, ready to run."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._actions: dict[str, list[Action | None]] = {}

    def actions(self, name: str) -> list[Action | None]:
        """Return what the instructions of a function do; None for those that are about order."""
        if name not in self._actions:
            instructions = self.module.functions[name].instructions
            self._actions[name] = [
                None if one.name[0] in _OF_ORDER else action_of(one) for one in instructions
            ]
        return self._actions[name]


class Warp:
    """32 threads of a program.

    Parameters
    ----------
    code : Code
        of the kernel
    number : int
        of the warp in its program
    place, grid : tuple
        of the program
    threads : int
        of the program
    memory, shared
        what it uses
    symbols : dict
        where constants are
    must_wait : bool
        whether the kernel before may still run
    """

    def __init__(
        self,
        code: Code,
        number: int,
        place: tuple[int, ...],
        grid: tuple[int, ...],
        threads: int,
        memory: Global,
        shared: Shared,
        symbols: dict[str, int],
        *,
        must_wait: bool,
    ) -> None:
        self.code, self.number, self.memory, self.shared = code, number, memory, shared
        self.must_wait = must_wait
        self._symbols = {"global_smem": Shared.start, **symbols}
        self._begun: list[Any] = []
        self._groups: list[list[Any]] = []
        numbers = {"%laneid": LANES, "%tid.x": THREADS * number + LANES, "%ntid.x": threads}
        for axis, at, count in zip("xyz", place, grid, strict=True):
            numbers |= {f"%ctaid.{axis}": at, f"%nctaid.{axis}": count}
        self.numbers = {key: value + 0 * LANES for key, value in numbers.items()}

    def address_of(self, symbol: str) -> int:
        """Return where a named constant, or the shared memory, begins."""
        if symbol not in self._symbols:
            raise Fault(f"unknown: {symbol}")
        return self._symbols[symbol]

    def run(self, arguments: dict[str, np.ndarray]) -> Iterator[int]:
        """Run a kernel; yield where all warps of the program must meet."""
        yield from Call(self, self.code.module.kernel, arguments).run()
        if self.must_wait:
            raise Fault("a kernel never waits for the one before it")
        if self._begun or self._groups:
            raise Fault("nobody waits for a copy")

    def global_memory(self) -> Global:
        """Return it, if the kernel has waited for those before."""
        if self.must_wait:
            raise Fault("memory is touched before griddepcontrol.wait")
        return self.memory

    def begin_copy(self, to: np.ndarray, words: list[np.ndarray]) -> None:
        """Copy words to shared memory, some time before they are waited for."""
        self.shared.announce(to, 4 * len(words), self.number)
        self._begun.append((to, words))

    def commit(self) -> None:
        """Make one group of the copies that have begun."""
        self._groups.append(self._begun)
        self._begun = []

    def wait(self, left: int) -> None:
        """Wait until so many groups of copies are left."""
        while len(self._groups) > left:
            for to, words in self._groups.pop(0):
                for index, word in enumerate(words):
                    self.shared.arrive(to + 4 * index, word, self.number)


class Call:
    """A function that a warp runs: its registers, and which threads are where."""

    def __init__(self, warp: Warp, name: str, arguments: dict[str, np.ndarray]) -> None:
        self.warp, self.arguments = warp, arguments
        self.registers: dict[str, np.ndarray] = {}
        self.passed: dict[str, np.ndarray] = {}
        """What the next call is given."""
        self._function: Function = warp.code.module.functions[name]
        self._actions = warp.code.actions(name)

    def run(self) -> Iterator[int]:
        """Run it to its end; yield where all warps must meet."""
        # Threads that have branched off wait until the others come to where they are.
        apart: list[tuple[int, np.ndarray]] = []
        at, mask = 0, None
        while True:
            for other in [other for other in apart if other[0] == at]:
                apart.remove(other)
                mask = other[1] if mask is None else mask | other[1]
            if mask is not None and mask.all():
                mask = None
            if any(other[0] < at for other in apart):
                at, mask = self._swap(apart, at, mask)
            action, instruction = self._actions[at], self._function.instructions[at]
            try:
                taken = self._taken(instruction, mask)
                if action is not None:
                    action(self, taken)
                    at += 1
                    continue
            except Exception as error:
                raise Fault(f"{error} ({instruction.text})") from error
            verb = instruction.name[0]
            if verb == "bra":
                at, mask = self._branch(instruction, at, mask, taken, apart)
                continue
            if taken is not None or apart:
                raise Fault(f"only some threads of a warp run {instruction.text}")
            if verb == "ret":
                return
            if verb == "bar" and instruction.name[1] == "sync":
                yield at
            elif verb == "griddepcontrol":
                if instruction.name[1] == "wait":
                    self.warp.must_wait = False
            elif verb == "bar":
                raise Fault(f"unknown: {instruction.text}")
            else:
                yield from self._callee(instruction).run()
            at += 1

    def _taken(self, instruction: Instruction, mask: Mask) -> Mask:
        if instruction.guard is None:
            return mask
        chosen = self.registers[instruction.guard] ^ instruction.unless
        return chosen if mask is None else chosen & mask

    def _branch(
        self,
        instruction: Instruction,
        at: int,
        mask: Mask,
        taken: Mask,
        apart: list[tuple[int, np.ndarray]],
    ) -> tuple[int, Mask]:
        to = self._function.labels[instruction.operands[0]]
        stay = ~taken if mask is None and taken is not None else mask
        if taken is not None and mask is not None:
            stay = mask & ~taken
        if instruction.guard is None or not stay.any():
            return to, mask
        if not taken.any():
            return at + 1, mask
        apart.append((to, taken))
        return at + 1, stay

    @staticmethod
    def _swap(apart: list[tuple[int, np.ndarray]], at: int, mask: Mask) -> tuple[int, Mask]:
        first = min(apart, key=lambda other: other[0])
        apart.remove(first)
        apart.append((at, mask))
        return first

    def _callee(self, instruction: Instruction) -> "Call":
        name, given = instruction.operands[0], members(instruction.operands[1].strip("()"))
        parameters = self.warp.code.module.functions[name].parameters
        values = [self.passed[one] for one in given]
        self.passed = {}
        return Call(self.warp, name, dict(zip(parameters, values, strict=True)))
