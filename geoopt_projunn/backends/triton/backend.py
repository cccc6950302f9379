"""The kernels as a backend."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...linalg.precision import WIDE
from ..batch import Pieces
from ..contract import Buffers, NativeRule, Rule, StepSpec
from ..modes import refusal_of_modes
from ..reference import Reference
from . import support

_LARGEST_RANK = 16
_LARGEST_SWEEP = 8
_SKETCHES = ("tangent", "lsi")
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
        if not support.is_installed():
            return False
        if support.is_interpreted():
            return True
        devices = range(torch.cuda.device_count())
        return any(support.lack(torch.device("cuda", index)) is None for index in devices)

    def refusal(self, x: torch.Tensor) -> str | None:
        """Return why the kernels cannot serve tensors like ``x``."""
        if not x.is_cuda and not (x.is_cpu and support.is_installed() and support.is_interpreted()):
            return f"the tensors are on {x.device}"
        if x.is_cuda and (lack := support.lack(x.device)):
            return lack
        if x.dtype not in WIDE:
            return f"the kernels do not know {x.dtype}"
        return refusal_of_modes()

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
        if _knows(x[0], spec) and _native(rule, group) is not None:
            group = {**group, "compile": False}
        super().step_(x, grad, buffers, rule, group, spec)

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
            return super()._step_batch(x, grad, buffers, rule, spec, group)
        if x.numel() == 0:
            return None
        own = {name: _plain(buffer) for name, buffer in buffers.items()}
        point = _plain(x)
        with _on(x.device):
            _take(point, _plain(grad), own, native, spec, group)
        for given, taken in ((x, point), *((buffers[name], own[name]) for name in own)):
            if taken is not given:
                given.copy_(taken)
        torch.autograd.graph.increment_version([x, *buffers.values()])
        return None


def _knows(x: torch.Tensor, spec: StepSpec) -> bool:
    """Return whether the kernels know such steps of (*, n, p)."""
    return (
        spec.k is not None
        and 1 <= spec.k <= min(_LARGEST_RANK, x.shape[-1] // 2)
        and x.shape[-1] == x.shape[-2]
        and spec.sketch in _SKETCHES
        and spec.retraction in _RETRACTIONS
        and min(spec.sweep, x.shape[-1]) <= _LARGEST_SWEEP
        and spec.transform is None
    )


def _native(rule: Rule, group: Mapping[str, Any]) -> NativeRule | None:
    """Return the native form of a rule, None also for one with numbers on a GPU."""
    native = rule.native(group)
    if native is None or any(getattr(number, "is_cuda", False) for number in native.numbers):
        return None
    return native


def _plain(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies in memory in its order, itself if it does."""
    return t.resolve_conj().resolve_neg().contiguous()


def _on(device: torch.device) -> AbstractContextManager[None]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _take(
    x: torch.Tensor,
    grad: torch.Tensor,
    buffers: Buffers,
    native: NativeRule,
    spec: StepSpec,
    group: Mapping[str, Any],
) -> None:
    from .kernels import directions
    from .step import Direction, Step

    state = [buffers[name] for name in native.state]
    first, second, third = (*map(float, native.numbers), 0.0, 0.0, 0.0)[:3]
    rule = directions.GRADIENT
    if native.name == "momentum":
        rule = directions.NESTEROV if third else directions.MOMENTUM
    elif native.name == "adam":
        is_scalar = state[1].shape[-2:] == (1, 1)
        rule = directions.ADAM_SCALAR if is_scalar else directions.ADAM
    has_most = len(state) == 3
    kept = [*state, *(grad,) * (3 - len(state))]
    d = Direction(grad, *kept, rule, has_most, (first, second, third))
    rate = group["lr"] if isinstance(group["lr"], torch.Tensor) else None
    if rate is not None and rate.device != x.device:
        rate = rate.item()
    sign = 1.0 if group["maximize"] else -1.0
    number, on_device = (1.0, rate) if isinstance(rate, torch.Tensor) else (group["lr"], None)
    Step(x, d, buffers["step"], buffers["skipped"], sign * float(number), on_device, spec).take()
