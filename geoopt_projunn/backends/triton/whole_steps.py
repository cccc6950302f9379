"""One kernel in place of several, for matrices so small that one program each takes their steps.

The kernels of a step become functions that a single kernel calls in turn. Its source is made of the
launches that it replaces, so that nothing about a step is written twice.
"""

import functools
import itertools
import linecache
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

_NAME = "whole_step_kernel"
# Between kernels: what one thread has written, others read.
_BARRIER = "    tl.debug_barrier()\n"
_counter = itertools.count()


class Part(NamedTuple):
    """A kernel for which each matrix is one program, with its arguments and constants."""

    kernel: Any
    args: tuple[Any, ...]
    constants: Mapping[str, Any]


def as_one(parts: Sequence[Part]) -> tuple[Any, list[Any]]:
    """Return one kernel that does what several would do, one after another; and its arguments."""
    # Of tensors that several kernels are given one is passed.
    given: dict[object, tuple[str, Any]] = {}
    calls, numbers = [], []
    for at, (kernel, args, constants) in enumerate(parts):
        names = []
        for name, value in zip(kernel.arg_names, args, strict=False):
            place = id(value) if isinstance(value, torch.Tensor) else (at, name)
            own, _ = given.setdefault(place, (f"{name}_{at}", value))
            if name in _numbers_of(kernel):
                numbers.append(own)
            names.append(own)
        named = [f"{name}={getattr(v, 'value', v)!r}" for name, v in constants.items()]
        calls.append(f"    {kernel.__name__}({', '.join((*names, *named))})\n")
    parameters = ", ".join(name for name, _ in given.values())
    text = f"def {_NAME}({parameters}):\n{_BARRIER.join(calls)}"
    kernel = _compiled(text, tuple(part.kernel for part in parts), tuple(numbers))
    return kernel, [value for _, value in given.values()]


def _numbers_of(kernel: Any) -> Sequence[str]:
    """Return which parameters Triton makes no kernel of their own for."""
    if isinstance(kernel, triton.JITFunction):
        return kernel.do_not_specialize
    # Interpreted.
    return kernel.kwargs["do_not_specialize"] or ()


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
    """Return what does the same as a kernel, called by another: with registers of its own."""
    return triton.jit(kernel.fn, noinline=True)
