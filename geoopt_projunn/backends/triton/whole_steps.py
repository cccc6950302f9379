"""One kernel in place of several, for matrices so small that one program takes the step of each.

The kernels of a step become functions that a single kernel calls in turn. Its source is made of the
launches that it replaces, so that nothing about a step is written twice.

A kernel that is launched finds that all programs of the one before it have ended. Here only the
threads of one program wait for each other, so no program may touch what another one writes.
"""

import functools
import itertools
import linecache
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

_NAME = "whole_step_kernel"
# Between parts: what one thread has written, others read.
_BARRIER = "    tl.debug_barrier()\n"
_counter = itertools.count()
# Two threads would make two kernels of one source, of which only one is kept.
_lock = threading.Lock()


class Part(NamedTuple):
    """A kernel for which each matrix is one program, with its arguments and constants."""

    kernel: Any
    args: tuple[Any, ...]
    constants: Mapping[str, Any]


def as_one(parts: Sequence[Part]) -> tuple[Any, list[Any]]:
    """Return one kernel that does what several would do, one after another; and its arguments."""
    # A tensor is passed once. It gets its name in the last part that uses it.
    given: dict[Hashable, Any] = {}
    names: dict[Hashable, str] = {}
    places: list[list[Hashable]] = []
    numbers = []
    for at, (kernel, args, _) in enumerate(parts):
        places.append([])
        for name, value in zip(kernel.arg_names, args, strict=False):
            place = id(value) if isinstance(value, torch.Tensor) else (at, name)
            given[place], names[place] = value, f"{name}_{at}"
            places[-1].append(place)
            # Triton must not compile anew for each value of these.
            if name in (getattr(kernel, "do_not_specialize", None) or ()):
                numbers.append(names[place])
    calls = []
    for (kernel, _, constants), own in zip(parts, places, strict=True):
        named = [f"{name}={getattr(v, 'value', v)!r}" for name, v in constants.items()]
        calls.append(
            f"    {kernel.__name__}({', '.join([*(names[place] for place in own), *named])})\n"
        )
    text = f"def {_NAME}({', '.join(names.values())}):\n{_BARRIER.join(calls)}"
    with _lock:
        whole = _compiled(text, tuple(part.kernel for part in parts), tuple(numbers))
    return whole, list(given.values())


@functools.cache
def _compiled(text: str, kernels: tuple[Any, ...], numbers: tuple[str, ...]) -> Any:
    """Return the kernel of a source that calls others by their names."""
    # Triton reads the source where Python shows it in tracebacks.
    file = f"<{__name__} {next(_counter)}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    names = {"tl": tl, "__name__": __name__}
    names.update((kernel.__name__, _function(kernel)) for kernel in kernels)
    exec(compile(text, file, "exec"), names)
    return triton.jit(names[_NAME], do_not_specialize=numbers)


@functools.cache
def _function(kernel: Any) -> Any:
    """Return a kernel as a function that is not inlined, so that it has registers of its own."""
    return triton.jit(kernel.fn, noinline=True)
