"""Which calls must consist of torch's own operations, without our own backward functions."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..linalg.modes import holds_gradients_of_many, in_forward_mode, is_transformed

T = TypeVar("T")


def needs_torch_operations(*tensors: Tensor | None) -> bool:
    """Return whether a call must consist of torch's own operations.

    That is so under torch.func (``grad``, ``vmap``, ``jvp``, …), in forward mode, in
    torch.export and torch.jit.trace, and where a tensor is of a subclass or, in a backward pass,
    holds a batch of gradients. The faster functions of this package work in place and know their
    first derivative only.
    """
    if is_transformed() or in_forward_mode() or is_exported():
        return True
    # The compiler takes the faster functions, and cannot look at the types of tensors.
    return not (torch.compiler.is_compiling() or all(map(_is_ordinary, tensors)))


def is_exported() -> bool:
    """Return whether torch.export or torch.jit.trace makes a program of the call."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_exporting()


def bound_to(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return x, whose last axes have these sizes.

    torch.jit.trace records operations and no checks. In a program, operations stand here that
    raise for other sizes, and for another number of axes.
    """
    if not is_exported():
        return x
    x = x.permute([*range(x.dim())])
    for axis, n in zip(range(x.dim() - len(sizes), x.dim()), sizes, strict=True):
        (x,) = x.split([n], axis)
    return x


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """Compute each value of a function once; torch.compile takes it as a constant."""
    cached = functools.lru_cache(function)

    # torch.compile would look into lru_cache itself, and warn.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @functools.wraps(function)
    def wrapped(*args: Hashable) -> T:
        return cached(*args)

    return wrapped


def _is_ordinary(t: Tensor | None) -> bool:
    return t is None or (_is_ordinary_type(type(t)) and not holds_gradients_of_many(t))


@functools.lru_cache(maxsize=64)
def _is_ordinary_type(kind: type) -> bool:
    # isinstance would take any tensor that acts as a parameter.
    return kind is Tensor or torch.nn.Parameter in kind.__mro__
