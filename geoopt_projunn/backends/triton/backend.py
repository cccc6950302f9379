"""The kernels as a backend."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...linalg.precision import WIDE
from ...linalg.rows import is_materialized, materialized
from ..batch import Pieces
from ..batch_sizes import parts_of_list
from ..modes import refusal_of_modes
from ..reference import Reference
from ..spec import Buffers, NativeRule, Rule, StepSpec
from . import support

_LARGEST_RANK = 16
_LARGEST_SWEEP = 8
# Of rows and of their partial sums, which kernels count in 32 bits.
_MOST_ENTRIES = 2**31
_SKETCHES = ("tangent", "lsi")
_NORMALIZATIONS = (None, "angle", "spectral")
_RULES = ("gradient", "momentum", "adam")
_RETRACTIONS = ("exponential", "cayley", "polar")


class Triton(Reference):
    """Whole steps in a few launches on a GPU; torch's operations for what the kernels do not know.

    They know ranks up to 16, the tangent and the LSI sketch, all retractions, and the rules that
    have a native form. What a matrix looks like in memory makes no difference, but one that is not
    contiguous is copied.
    """

    name = "triton"

    def lack(self) -> str | None:
        """Return what is missing: Triton, a GPU for it, or its interpreter; None if nothing is."""
        if support.INTERPRETED:
            return None
        devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        reasons = [support.lack(device) for device in devices]
        if None in reasons:
            return None
        return next(iter(reasons), support.lack_of_triton() or "there is no GPU")

    def refusal(self, x: torch.Tensor) -> str | None:
        """Return why the kernels cannot serve tensors like ``x``."""
        if not (x.is_cuda or (x.is_cpu and support.INTERPRETED)):
            return f"the tensors are on {x.device}"
        if x.dtype not in WIDE:
            return f"the kernels do not support {x.dtype}"
        if torch.compiler.is_compiling():
            return "torch.compile traces the step"
        return refusal_of_modes() or (support.lack(x.device) if x.is_cuda else None)

    def step_(
        self,
        x: Pieces,
        grad: Pieces,
        buffers: Mapping[str, Pieces],
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> bool:
        """Take whole steps; where the kernels serve there is nothing left to compile."""
        native = _native(rule, group) if _knows_like(x[0], spec) else None
        if native is None:
            return super().step_(x, grad, buffers, rule, group, spec)
        for some in parts_of_list(x):
            if len(points := x[some]) > 1:
                of_part = {name: pieces[some] for name, pieces in buffers.items()}
                options = {**group, "compile": False}
                super().step_(points, grad[some], of_part, rule, options, spec)
            else:
                of_one = {name: pieces[some.start] for name, pieces in buffers.items()}
                _step_one(points[0], grad[some.start], of_one, native, spec, group)
        return False

    def _step_batch(
        self,
        x: torch.Tensor,
        grad: torch.Tensor,
        buffers: Buffers,
        rule: Rule,
        spec: StepSpec,
        group: Mapping[str, Any],
    ) -> None:
        native = _native(rule, group)
        if native is None or not _knows_like(x, spec):
            super()._step_batch(x, grad, buffers, rule, spec, group)
        else:
            _step_one(x, grad, buffers, native, spec, group)


def _step_one(
    x: torch.Tensor,
    grad: torch.Tensor,
    buffers: Buffers,
    native: NativeRule,
    spec: StepSpec,
    group: Mapping[str, Any],
) -> None:
    """Step the matrices of one tensor, (*, n, p), in place."""
    if x.numel() == 0:
        return
    given = [x, *buffers.values()]
    if not all(map(is_materialized, (*given, grad))):
        own = [materialized(t) for t in given]
        of_own = dict(zip(buffers, own[1:], strict=True))
        _step_one(own[0], materialized(grad), of_own, native, spec, group)
        for to, t in zip(given, own, strict=True):
            if to is not t:
                to.copy_(t)
    elif not x.is_cuda or x.device.index == torch.cuda.current_device():
        _take()(x, grad, buffers, native, spec, group)
    else:
        with torch.cuda.device(x.device):
            _take()(x, grad, buffers, native, spec, group)
    torch.autograd.graph.increment_version(given)


@functools.cache
def _take() -> Callable[..., None]:
    """Return what takes a step; Triton is imported for the first one."""
    # To import it in each step would take the host 2 microseconds.
    from .step import take

    return take


def _knows_like(x: torch.Tensor, spec: StepSpec) -> bool:
    return _knows(x.shape, x.dtype, spec, support.largest_sketch(x.device))


@functools.lru_cache(maxsize=1024)
def _knows(shape: torch.Size, dtype: torch.dtype, spec: StepSpec, largest: int) -> bool:
    """Return whether the kernels know such steps of (*, n, p), with sketches of so many rows."""
    *_, n, p = shape
    return (
        spec.k is not None
        and 1 <= spec.k <= min(_LARGEST_RANK, n // 2, p)
        and (1 + dtype.is_complex) * spec.k <= largest
        and spec.sketch in _SKETCHES
        and spec.retraction in _RETRACTIONS
        and min(spec.sweep, p) <= _LARGEST_SWEEP
        and _entries(n, p, dtype, spec.k) <= _MOST_ENTRIES
        and spec.normalize in _NORMALIZATIONS
    )


def _entries(n: int, p: int, dtype: torch.dtype, k: int) -> int:
    """Return how many entries the partial row sums of a matrix have, or twice its rows."""
    partial = p * dtype.itemsize // support.TILE_BYTES + 1
    return (1 + dtype.is_complex) * k * n * max(2, partial)


def _native(rule: Rule, group: Mapping[str, Any]) -> NativeRule | None:
    """Return the native form of a rule, if the kernels know it and its numbers are on the host."""
    native = rule.native(group)
    if native is None or native.name not in _RULES:
        return None
    # Options may be tensors.
    numbers: tuple[object, ...] = native.numbers
    on_device = any(isinstance(v, torch.Tensor) and not v.is_cpu for v in numbers)
    return None if on_device else native
