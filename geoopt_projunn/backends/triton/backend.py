"""The kernels as a backend."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...linalg.precision import WIDE
from ...normalization import furthest
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

    def is_available(self) -> bool:
        """Return whether there is Triton, and a GPU for it or its interpreter."""
        devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        return support.INTERPRETED or any(support.lack(device) is None for device in devices)

    def refusal(self, x: torch.Tensor) -> str | None:
        """Return why the kernels cannot serve tensors like ``x``."""
        if not (x.is_cuda or (x.is_cpu and support.INTERPRETED)):
            return f"the tensors are on {x.device}"
        if x.dtype not in WIDE:
            return f"the kernels do not know {x.dtype}"
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
    ) -> None:
        """Take whole steps; where the kernels serve there is nothing left to compile."""
        native = _native(rule, group) if _knows(x[0], spec) else None
        if native is None:
            super().step_(x, grad, buffers, rule, group, spec)
            return
        for some in parts_of_list(x):
            if len(points := x[some]) > 1:
                of_part = {name: pieces[some] for name, pieces in buffers.items()}
                options = {**group, "compile": False}
                super().step_(points, grad[some], of_part, rule, options, spec)
            else:
                of_one = {name: pieces[some.start] for name, pieces in buffers.items()}
                _step_one(points[0], grad[some.start], of_one, native, spec, group)

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
        if native is None or not _knows(x, spec):
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
    taken = [_plain(t) for t in given]
    own = dict(zip(buffers, taken[1:], strict=True))
    with _on(x.device):
        _take(taken[0], _plain(grad), own, native, spec, group)
    for to, t in zip(given, taken, strict=True):
        if to is not t:
            to.copy_(t)
    torch.autograd.graph.increment_version(given)


def _knows(x: torch.Tensor, spec: StepSpec) -> bool:
    """Return whether the kernels know such steps of (*, n, p)."""
    return (
        spec.k is not None
        and 1 <= spec.k <= min(_LARGEST_RANK, x.shape[-2] // 2, x.shape[-1])
        and spec.sketch in _SKETCHES
        and spec.retraction in _RETRACTIONS
        and min(spec.sweep, x.shape[-1]) <= _LARGEST_SWEEP
        and _entries(x, spec.k) <= _MOST_ENTRIES
        and spec.normalize in _NORMALIZATIONS
    )


def _entries(x: torch.Tensor, k: int) -> int:
    """Return how many entries the partial row sums of a matrix have, or twice its rows."""
    partial = x.shape[-1] * x.element_size() // support.TILE_BYTES + 1
    return (1 + x.is_complex()) * k * x.shape[-2] * max(2, partial)


def _native(rule: Rule, group: Mapping[str, Any]) -> NativeRule | None:
    """Return the native form of a rule, if the kernels know it and its numbers are on the host."""
    native = rule.native(group)
    if native is None or native.name not in _RULES:
        return None
    # Options may be tensors.
    numbers: tuple[object, ...] = native.numbers
    on_device = any(isinstance(v, torch.Tensor) and not v.is_cpu for v in numbers)
    return None if on_device else native


def _plain(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies in memory in its order, itself if it does."""
    if t.is_contiguous() and not t.is_conj() and not t.is_neg():
        return t
    return t.resolve_conj().resolve_neg().contiguous()


def _on(device: torch.device) -> AbstractContextManager[None]:
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _take(
    x: torch.Tensor,
    grad: torch.Tensor,
    buffers: Buffers,
    native: NativeRule,
    spec: StepSpec,
    group: Mapping[str, Any],
) -> None:
    from .direction import Direction
    from .programs import Number, run
    from .step import Step

    # Radians are radians, whatever the size of a generator.
    scale = spec.scale if spec.normalize is None else 1.0
    unit, rate = (scale if group["maximize"] else -scale), group["lr"]
    # On a GPU; one on the host is a number.
    is_on_device = isinstance(rate, torch.Tensor) and rate.device == x.device
    length, factor = (unit, rate) if is_on_device else (unit * float(rate), None)
    d = Direction.of(grad, buffers, native)
    is_limited = is_on_device or _may_stop(length, x, spec)
    lead = x.dim() - 2

    def take(numbers: Sequence[Number]) -> None:
        # The same memory as batches; what is replayed needs addresses alone.
        point, counter, skipped, *tensors = (
            t.detach().flatten(0, lead - 1) if lead else t.detach()[None]
            for t in (x, buffers["step"], buffers["skipped"], *d.tensors)
        )
        own, *of_rule = numbers
        follow = d._replace(tensors=tuple(tensors), numbers=tuple(of_rule))
        Step(point, follow, counter, skipped, own, factor, spec, is_limited=is_limited).take()

    inputs = [x, grad, *(buffers[name] for name in ("step", "skipped", *native.state))]
    if factor is not None:
        inputs.append(factor)
    key = x.shape, spec, d.rule.value, d.has_most, is_on_device, is_limited
    run(key, inputs, (length, *d.numbers), take)


def _may_stop(length: float, x: torch.Tensor, spec: StepSpec) -> bool:
    """Return whether a plane might turn further than half a turn."""
    if spec.normalize is None:
        return False
    assert spec.k is not None
    return furthest(length, 2 * spec.k if x.is_complex() else spec.k, spec.normalize) > math.pi
