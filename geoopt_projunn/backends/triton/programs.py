"""Launch the kernels of a step as those of the last one like it, with other addresses.

Triton binds, specializes and hashes all arguments of each launch, which takes the host longer than
a small step takes the GPU. Steps of the same sizes, dtypes, options and alignment differ in
addresses and a few numbers alone. So the launches of the first of them are recorded, and the others
start the same compiled kernels with what differs.
"""

import functools
import inspect
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton

from .launches import Launch, Launches, Place, can_join, joined

# What Triton may assume of addresses and of integers when it compiles a kernel.
ALIGNMENT = 16
# Of parts of one allocation, as of allocations.
_ALIGNED = 512
_MOST_PROGRAMS = 1024


class Number:
    """A number that may differ between the steps of a program.

    Kernels take its bits, for Triton would pass it in float32. What depends on it otherwise has to
    be part of the key of the program.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits


class Program(NamedTuple):
    """The launches of a step."""

    memory: int
    """Bytes to work in."""
    launches: Launches

    def run(self, values: Sequence[int], device: torch.device) -> None:
        """Launch all of it, with the addresses and the bits of the numbers of one step."""
        memory = torch.empty(self.memory, dtype=torch.uint8, device=device)
        self.launches.start((*values, memory.data_ptr(), stream_of(device)), device)


class Recorder:
    """Note the launches of a step, and which of their arguments differ in the next one.

    Parameters
    ----------
    inputs : sequence of torch.Tensor
        all that kernels are given and that is not from :meth:`allocated`, contiguous
    numbers : sequence of Number
        those of the step
    """

    def __init__(self, inputs: Sequence[torch.Tensor], numbers: Sequence[Number]) -> None:
        self._numbers = numbers
        self._spans = [(*_span(t), number, 0) for number, t in enumerate(inputs)]
        spans = sorted(self._spans)
        # Of memory that is shared an address would not tell which one is meant.
        self._is_complete = all(end <= start for (_, end, *_), (start, *_) in pairwise(spans))
        self._inputs = len(inputs)
        # After these values come the address of memory and the stream.
        self._own = len(inputs) + len(numbers)
        self._memory = 0
        self._launches: list[Launch] = []

    def allocated(self, memory: torch.Tensor) -> None:
        """Take note of memory that the step works in."""
        start, end = _span(memory)
        self._spans.append((start, end, self._own, self._memory))
        self._memory += -(-(end - start) // _ALIGNED) * _ALIGNED

    def launched(
        self,
        compiled: Any,
        kernel: Any,
        grid: tuple[int, ...],
        args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> None:
        """Take note of a launch and of what Triton returned."""
        if not self._is_complete or not can_join(compiled):
            self._is_complete = False
            return
        given = tuple(map(self._place, in_order(kernel, args, options)))
        self._launches.append(Launch(compiled, grid, given))

    def _place(self, value: Any) -> Any:
        """Return where an argument comes from, or itself if it is a constant."""
        if isinstance(value, Number):
            return Place(self._inputs + self._numbers.index(value), 0)
        if not isinstance(value, torch.Tensor):
            return value
        address = value.data_ptr()
        for start, end, number, offset in self._spans:
            if start <= address < end:
                return Place(number, offset + address - start)
        self._is_complete = False
        return value

    def program(self) -> Program | None:
        """Return what was recorded, None if some of it cannot be replayed."""
        if not self._is_complete or not self._launches:
            return None
        return Program(self._memory, joined(self._launches))


_recorder: ContextVar[Recorder | None] = ContextVar("_recorder", default=None)
_programs: dict[Hashable, Program] = {}


def recorder() -> Recorder | None:
    """Return what is to note the launches of the present step."""
    return _recorder.get()


def run(
    key: Hashable,
    inputs: Sequence[torch.Tensor],
    numbers: Sequence[float],
    take: Callable[[Sequence[Number]], None],
) -> None:
    """Take a step: as the last one like it if there was one, else by ``take``.

    Parameters
    ----------
    key
        All that the launches depend on but the device, and what Triton compiles kernels for:
        dtypes, alignment and special integers among ``inputs`` and ``numbers``.
    inputs : sequence of torch.Tensor
        all tensors that kernels read or write, contiguous, on one device
    numbers : sequence of float
        whose bits kernels are given
    take : callable
        Takes the step with these numbers, by :func:`.launching.launch` and with memory from
        :func:`.launching.carve`.
    """
    device = inputs[0].device
    addresses, own_bits = [t.data_ptr() for t in inputs], bits_of(numbers)
    values = (*addresses, *own_bits)
    alignments = [address % ALIGNMENT for address in addresses]
    key = key, device, *[t.dtype for t in inputs], *alignments, *map(specialized, own_bits)
    program = _programs.get(key)
    if program is not None and not has_hooks():
        program.run(values, device)
        return
    own = [Number(value) for value in own_bits]
    with _recording(Recorder(inputs, own)) as record:
        take(own)
    program = record.program()
    if program is not None:
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        _programs[key] = program


def specialized(value: int) -> tuple[bool, bool, bool]:
    """Return what of an address or an integer makes Triton compile a kernel of its own."""
    return value % ALIGNMENT == 0, value == 1, -(2**31) <= value < 2**31


def bits_of(numbers: Sequence[float]) -> tuple[int, ...]:
    """Return the bits of numbers in float64, as signed integers."""
    floats, integers = _formats(len(numbers))
    return integers.unpack(floats.pack(*numbers))


@functools.cache
def _formats(count: int) -> tuple[struct.Struct, struct.Struct]:
    return struct.Struct(f"{count}d"), struct.Struct(f"{count}q")


@contextmanager
def _recording(own: Recorder) -> Iterator[Recorder]:
    token = _recorder.set(own)
    try:
        yield own
    finally:
        _recorder.reset(token)


def _span(t: torch.Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()


def stream_of(device: torch.device) -> int:
    """Return where Triton itself launches."""
    stream: int = triton.runtime.driver.active.get_current_stream(device.index)
    return stream


def has_hooks() -> bool:
    """Return whether somebody, such as a profiler, wants to be told of launches."""
    runtime = triton.knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def in_order(kernel: Any, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a kernel as it declares them, without the compiler's options."""
    signature = inspect.signature(kernel.fn)
    named = {name: value for name, value in options.items() if name in signature.parameters}
    bound = signature.bind(*args, **named)
    bound.apply_defaults()
    return bound.args
