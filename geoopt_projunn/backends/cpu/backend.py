"""The kernels as a backend."""

from collections.abc import Mapping
from typing import Any

import torch

from ...linalg.precision import WIDE
from ...rotation import Rotation
from ...sketches import Sketched
from ..batch import Pieces
from ..reference import Reference
from ..spec import Rule, StepSpec
from . import kernels, operators, steps
from .products import StreamedProducts

# Above, torch's products of whole matrices are faster.
_LARGEST_CORE = 64


class CPU(Reference):
    """Kernels for CPUs that read each matrix once; torch's operations for what they do not know."""

    name = "cpu"
    products = StreamedProducts()

    lack = staticmethod(kernels.lack)
    refusal = staticmethod(kernels.refusal)

    def sketch(
        self, x: torch.Tensor, d: torch.Tensor, spec: StepSpec, counter: torch.Tensor
    ) -> Sketched:
        """Sketch by one kernel, where it knows the sketch."""
        is_known = spec.sketch in kernels.SKETCHES and spec.normalize is None and d.dtype == x.dtype
        most = min(x.shape[-1], x.shape[-2] // 2) if is_known and kernels.is_stored(x) else 0
        if spec.k is not None and spec.k <= most and kernels.is_stored(d):
            rows, core = operators.sketch(x, d, spec.k, counter, spec.sketch)
            return Sketched(rows, core if spec.scale == 1 else core.mul_(spec.scale))
        return super().sketch(x, d, spec, counter)

    def retract(self, core: torch.Tensor, retraction: str) -> torch.Tensor:
        """Retract by one kernel, cores of the size that steps have."""
        is_known = retraction in kernels.RETRACTIONS and core.dtype in WIDE.values()
        if is_known and core.shape[-1] <= _LARGEST_CORE:
            return operators.retract(core, retraction)
        return super().retract(core, retraction)

    def turn_(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        sweep: int,
        counter: torch.Tensor,
        active: torch.Tensor,
    ) -> torch.Tensor:
        """Turn and sweep in two passes: the rotation does not change :math:`x^H x - I`."""
        if rotation.rows is not None and kernels.is_stored(x):
            return operators.turn_(x, rotation.rows, rotation.delta, sweep, counter, active)
        return super().turn_(x, rotation, sweep, counter, active)

    def step_(
        self,
        x: Pieces,
        grad: Pieces,
        buffers: Mapping[str, Pieces],
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> bool:
        """Take whole steps, each matrix from its gradient to the next point while it is cached.

        Nothing of its size is created, whatever the rule keeps, and nothing is copied: points,
        gradients and buffers may be in any number of tensors.
        """
        native = rule.native(group)
        # What is conjugated lazily takes torch's operations; what lies otherwise is refused below.
        is_lazy = x[0].is_conj() or grad[0].is_conj()
        if native and not is_lazy and spec.k is not None and spec.sketch in kernels.SKETCHES:
            # A length in radians does not depend on the metric.
            length = float(group["lr"]) * (spec.scale if spec.normalize is None else 1.0)
            state = [piece for name in native.state for piece in buffers[name]]
            numbers = [float(number) for number in native.numbers]
            kind, sweep = (spec.k, spec.sketch, spec.retraction), min(spec.sweep, x[0].shape[-1])
            length = length if group["maximize"] else -length
            options = native.name, numbers, *kind, length, sweep, spec.normalize
            try:
                return steps.take((x, grad, state, buffers["step"], buffers["skipped"]), options)
            except kernels.Refused:
                pass  # State that was loaded may have any strides.
            except RuntimeError:
                # torch's dispatcher takes no lazily conjugated or negated tensors to be changed.
                if not any(piece.is_conj() or piece.is_neg() for piece in state):
                    raise
        return super().step_(x, grad, buffers, rule, group, spec)
