"""Launch the kernels of a step as those of the last one like it, with other addresses.

Triton binds, specializes and hashes all arguments of each launch, which takes the host longer than
a small step takes the GPU. Steps of the same sizes, dtypes, options and alignment differ in
addresses and a few numbers alone. So the launches of the first of them are recorded, and the others
hand the same compiled kernels what differs.
"""

import inspect
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from triton.compiler import CompiledKernel

from . import support

# Up to this version a compiled kernel is launched by `compiled.run(*grid, stream, ...)`, as torch's
# own compiler launches it, pointers may be integers, and `kernel[grid](...)` returns `compiled`.
# With later ones nothing is replayed.
_REPLAYS = (support.version() or ()) <= (3, 8)
# What Triton may assume of addresses and of integers when it compiles a kernel.
DIVISOR = 16
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


class _Place(NamedTuple):
    """An argument that differs from step to step: one of the values of a step, and an offset."""

    number: int
    offset: int


class Program(NamedTuple):
    """The launches of a step; all their arguments come from one table."""

    memory: int
    """Bytes to work in."""
    places: tuple[_Place, ...]
    constants: tuple[Any, ...]
    launches: tuple[tuple[Callable[..., None], Callable[[Any], tuple[Any, ...]]], ...]
    """What launches a kernel, and what picks its arguments from the table."""
    kernels: tuple[Any, ...]
    """From Triton 3.8 on, one that nobody has any more is unloaded."""

    def run(self, values: Sequence[int], device: torch.device) -> None:
        """Launch all of it, with the addresses and the bits of the numbers of one step."""
        memory = torch.empty(self.memory, dtype=torch.uint8, device=device)
        values = (*values, memory.data_ptr(), stream_of(device))
        table = [values[number] + offset for number, offset in self.places]
        table += self.constants
        for start, pick in self.launches:
            start(*pick(table))


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
        self._is_complete = _REPLAYS and all(
            end <= start for (_, end, *_), (start, *_) in pairwise(spans)
        )
        self._inputs = len(inputs)
        # After these values come the addresses and the stream.
        self._own = len(inputs) + len(numbers)
        self._memory = 0
        self._launches: list[tuple[Any, list[Any]]] = []

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
        if not self._is_complete or not can_replay(compiled):
            self._is_complete = False
            return
        how = arguments(compiled, grid, _Place(self._own + 1, 0))
        given = map(self._place, in_order(kernel, args, options))
        self._launches.append((compiled, [*how, *given]))

    def _place(self, value: Any) -> Any:
        """Return where an argument comes from, or itself if it is a constant."""
        if isinstance(value, Number):
            return _Place(self._inputs + self._numbers.index(value), 0)
        if not isinstance(value, torch.Tensor):
            return value
        address = value.data_ptr()
        for start, end, number, offset in self._spans:
            if start <= address < end:
                return _Place(number, offset + address - start)
        self._is_complete = False
        return value

    def program(self) -> Program | None:
        """Return what was recorded, None if some of it cannot be replayed."""
        if not self._is_complete or not self._launches:
            return None
        values = [value for _, args in self._launches for value in args]
        places = dict.fromkeys(value for value in values if isinstance(value, _Place))
        constants = {id(value): value for value in values if not isinstance(value, _Place)}
        at = {key: number for number, key in enumerate((*places, *constants))}
        launches = []
        for compiled, args in self._launches:
            picked = [at[arg if isinstance(arg, _Place) else id(arg)] for arg in args]
            launches.append((compiled.run, itemgetter(*picked)))
        kernels = tuple(compiled for compiled, _ in self._launches)
        return Program(
            self._memory, tuple(places), tuple(constants.values()), tuple(launches), kernels
        )


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
    values = (*[t.data_ptr() for t in inputs], *bits_of(numbers))
    key = key, device, *[t.dtype for t in inputs], *map(specialized, values)
    program = _programs.get(key)
    if program is not None and not has_hooks():
        program.run(values, device)
        return
    own = [Number(value) for value in values[len(inputs) :]]
    with _recording(Recorder(inputs, own)) as record:
        take(own)
    program = record.program()
    if program is not None:
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        _programs[key] = program


def specialized(value: int) -> tuple[bool, bool, bool]:
    """Return what of an address or an integer makes Triton compile a kernel of its own."""
    return value % DIVISOR == 0, value == 1, -(2**31) <= value < 2**31


def bits_of(numbers: Sequence[float]) -> tuple[int, ...]:
    """Return the bits of numbers in float64, as signed integers."""
    count = len(numbers)
    return struct.unpack(f"{count}q", struct.pack(f"{count}d", *numbers))


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


def can_replay(compiled: Any) -> bool:
    """Return whether what Triton returned of a launch is launched again as here."""
    return _REPLAYS and isinstance(compiled, CompiledKernel)


def has_hooks() -> bool:
    """Return whether somebody, such as a profiler, wants to be told of launches."""
    runtime = triton.knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def arguments(compiled: Any, grid: Sequence[int], stream: Any) -> tuple[Any, ...]:
    """Return what ``compiled.run`` is given before the arguments of its kernel."""
    # No hooks, and nothing to tell them.
    how = (stream, compiled.function, compiled.packed_metadata, None, None, None)
    return *(*grid, 1, 1)[:3], *how


def in_order(kernel: Any, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a kernel as it declares them, without the compiler's options."""
    signature = inspect.signature(kernel.fn)
    named = {name: value for name, value in options.items() if name in signature.parameters}
    bound = signature.bind(*args, **named)
    bound.apply_defaults()
    return bound.args
