"""Steps in torch's operations: on any device, without data, with derivatives, compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..drift import turn_
from ..linalg.dense import estimate_orthogonality_error, skewh
from ..linalg.rows import IN_TORCH, Products
from ..normalization import noise_floor, normalized
from ..retractions import RETRACTIONS
from ..rotation import Rotation
from ..sketches import SKETCHES, Sketched, exact, exact_tangent, full_range, skew
from ..sketches.coordinates import COORDINATES, chosen, coordinates, turn_coordinates_
from .batch import Pieces, gather, scatter
from .batch_sizes import parts_of_batch, parts_of_list
from .spec import Buffers, Proposal, Rule, StepSpec, TangentMomentum
from .torch_compile import compiled, pays


class Reference:
    """The methods of a backend; another one overrides those that it does better.

    Points are (b, n, p) with n >= p, cores (b, r, r), counters (b,), int64: the number of the step.
    """

    name = "reference"
    products: Products = IN_TORCH
    """How it multiplies a few rows with large matrices."""

    def lack(self) -> str | None:
        """Return why this backend cannot serve on this machine, None if it can."""
        return None

    def refusal(self, x: torch.Tensor) -> str | None:
        """Return why this backend cannot serve tensors like ``x`` now, None if it can."""
        return None

    def sketch(
        self, x: torch.Tensor, d: torch.Tensor, spec: StepSpec, counter: torch.Tensor
    ) -> Sketched:
        """Sketch the generator of a step along the ambient direction ``d``, (b, n, p)."""
        floor = 0.0 if spec.normalize is None else noise_floor(x)
        if spec.k is None:
            sketched = exact(x, d, floor)
        else:
            sketch = coordinates if spec.sketch == COORDINATES else SKETCHES[spec.sketch]
            sketched = sketch(x, d, spec.k, counter, self.products, floor)
        return sketched if spec.scale == 1 else sketched.times(spec.scale)

    def sketch_tangent(self, x: torch.Tensor, u: torch.Tensor, spec: StepSpec) -> Sketched:
        """Sketch a tangent vector, exactly if :meth:`sketch` may have returned it."""
        if spec.k is None:
            return exact_tangent(x, u)
        return full_range(x, u, 2 * spec.k, self.products)

    def rotation(
        self,
        sketched: Sketched,
        length: float | torch.Tensor,
        spec: StepSpec,
        dtype: torch.dtype,
        columns: int | None = None,
    ) -> Rotation:
        """Retract ``length`` times a sketched generator; the rows become of ``dtype``.

        Where the length is in radians, ``columns`` is p of points (n, p) that are not square.
        """
        rows, core = sketched
        if spec.normalize is None:
            core = length * core
        else:
            core = normalized(core, length, spec.normalize, columns or core.shape[-1])
        delta = self.retract(core, spec.retraction)
        return Rotation(None if rows is None else rows.to(dtype), delta)

    def retract(self, core: torch.Tensor, retraction: str) -> torch.Tensor:
        """Return the rotation P of a core, as :math:`P - I`."""
        return RETRACTIONS[retraction](core)

    def turn_(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        sweep: int,
        counter: torch.Tensor,
        active: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate x and sweep some of its columns, as :func:`geoopt_projunn.drift.turn_` does."""
        return turn_(x, rotation, sweep, counter, active, self.products)

    def step_(
        self,
        x: Pieces,
        grad: Pieces,
        buffers: Mapping[str, Pieces],
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> bool:
        """Take one step with every matrix, in place.

        Where the gradient, the direction or the step is not finite, the matrix and its buffers
        stay as they are, bit for bit, and ``skipped`` counts one more.

        Parameters
        ----------
        x, grad : sequence of torch.Tensor
            tensors of one shape (*, n, p), dtype, device and strides
        buffers : mapping
            for each of them ``step`` and ``skipped``, (*,), and the state of the rule
        rule : Rule
            what makes a direction of a gradient
        group : mapping
            hyperparameters; "lr" is a number, or a tensor of shape () that multiplies on the device
        spec : StepSpec
            rank, sketch, retraction and drift control

        Returns
        -------
        bool
            Whether it is known, without a look at ``skipped``, that no matrix skipped the step.
        """
        lead = x[0].dim() - 2
        for some in parts_of_list(x):
            points, grads = gather(x[some]), gather(grad[some])
            kept = {name: gather(pieces[some], lead) for name, pieces in buffers.items()}
            take = step = type(self)._step_batch
            if group["compile"] and pays(points):
                take = compiled(step)
                # torch.compile writes into no others, as wide matrices are.
                points, grads = points.contiguous(), grads.contiguous()
                kept = {name: buffer.contiguous() for name, buffer in kept.items()}
            for part in parts_of_batch(points):
                of_part = {name: buffer[part] for name, buffer in kept.items()}
                take(self, points[part], grads[part], of_part, rule, spec, group=group)
            scatter(points, x[some])
            for name, buffer in kept.items():
                scatter(buffer, buffers[name][some])
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
        taken = buffers["step"]
        proposal = rule.propose(grad, buffers, taken, group)
        finite = self.follow_(
            x, proposal, lambda: are_finite(proposal, taken), taken, rule, group, spec
        )
        keep(buffers, proposal, finite)

    def follow_(
        self,
        x: torch.Tensor,
        proposal: Proposal,
        are_finite: Callable[[], torch.Tensor],
        taken: torch.Tensor,
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> torch.Tensor:
        """Follow a direction and withdraw from the proposed buffers what a step carries, in place.

        Return where x has moved, (b,): where the buffers are finite by then, and so is the step.
        """
        sketched = self.sketch(x, proposal.direction, spec, taken)
        for name, share in rule.withdrawn(group).items():
            buffer = proposal.buffers[name]
            sketched.add_direction_(buffer, x, -share / spec.scale, self.products)

        momentum = rule.tangent_momentum(group)
        if momentum is not None:
            sketched = self._with_momentum(sketched, momentum, proposal.buffers, taken, spec)
        length = group["lr"] if group["maximize"] else -group["lr"]
        rotation = self.rotation(sketched, length, spec, x.dtype, x.shape[-1])
        sweep = min(spec.sweep, x.shape[-1])
        # With momentum the rows are those of another sketch.
        if spec.sketch == COORDINATES and spec.k is not None and sweep == 0 and momentum is None:
            index = chosen(x, spec.k, taken)
            return turn_coordinates_(x, rotation, index, are_finite(), self.products)
        return self.turn_(x, rotation, sweep, taken, are_finite())

    def estimate_orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        r"""Estimate :math:`\lVert x^H x - I \rVert_F` of each matrix, (*)."""
        return estimate_orthogonality_error(x)

    def _with_momentum(
        self,
        sketched: Sketched,
        momentum: TangentMomentum,
        proposed: Buffers,
        taken: torch.Tensor,
        spec: StepSpec,
    ) -> Sketched:
        """Add a generator to a buffer of them, and sketch the sum, or what Nesterov looks at."""
        name, decay, dampening, nesterov = momentum
        # As in torch, the first step of a parameter takes the gradient undamped.
        share = (1 - dampening * (taken > 0).double())[:, None, None]
        total = proposed[name]
        self._add_generator_(total, sketched.times(share))
        if nesterov:
            total = decay * total
            self._add_generator_(total, sketched)
        return skew(total, spec.k, taken, self.products)

    def _add_generator_(self, total: torch.Tensor, sketched: Sketched) -> None:
        core = skewh(sketched.core)
        if sketched.rows is None:
            total.add_(core)
        else:
            factor = torch.bmm(core, sketched.rows).to(total.dtype)
            self.products.add_product_(total, sketched.rows.to(total.dtype), factor)


def keep(buffers: Buffers, proposal: Proposal, finite: torch.Tensor) -> None:
    """Keep what was proposed where a step was finite, and count steps, in place."""
    for name, buffer in proposal.buffers.items():
        torch.where(finite[:, None, None], buffer, buffers[name], out=buffers[name])
    buffers["step"].add_(finite)
    buffers["skipped"].add_(~finite)


def are_finite(proposal: Proposal, taken: torch.Tensor) -> torch.Tensor:
    """Return for each matrix whether the next values of its buffers are finite, (b,), bool."""
    finite = torch.ones_like(taken, dtype=torch.bool)
    for buffer in proposal.buffers.values():
        if buffer.numel() == 0:
            # The part of a process may have no rows.
            continue
        real = torch.view_as_real(buffer).flatten(-2) if buffer.is_complex() else buffer
        # Two passes that create nothing of the buffer's size; the inf-norm is 20 times slower.
        finite = finite & torch.isfinite(real.amax((-2, -1))) & torch.isfinite(real.amin((-2, -1)))
    return finite
