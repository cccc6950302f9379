"""Steps of parameters that lie on several processes."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...linalg.dense import estimate_errors_of_batch
from ..batch import Pieces, gather, scatter
from ..reference import Reference, are_finite, keep
from ..spec import Buffers, Proposal, Rule, StepSpec
from .layout import Layout, from_part, layout_of, local_of, placements_of_batch, whole_of
from .marks import averages_gradients
from .products import Spread, SpreadProducts

# Above, stacking copies more than the exchanges that it saves are worth.
_TOGETHER_BELOW = 256


class Distributed(Reference):
    """The method over products that processes add up, average and join.

    Processes exchange O(kn) numbers a step. Everything small is computed by each of them, from the
    same bits to the same bits. They must take the same steps in the same order.

    Parameters
    ----------
    local : callable
        Given the part of a process, the backend for it.
    """

    name = "distributed"

    def __init__(self, local: Callable[[torch.Tensor], Reference]) -> None:
        self._local = local
        self.products = SpreadProducts(lambda x: local(x).products)

    def retract(self, core: torch.Tensor, retraction: str) -> torch.Tensor:
        """Retract as one process does."""
        return self._local(core).retract(core, retraction)

    def step_(
        self,
        x: Pieces,
        grad: Pieces,
        buffers: Mapping[str, Pieces],
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> bool:
        """Take one step with every matrix, as :meth:`Reference.step_` does."""
        alike = defaultdict(list)
        for i, p in enumerate(x):
            placed = getattr(p, "device_mesh", None), getattr(p, "placements", None)
            alike[placed, averages_gradients(p)].append(i)
        for members in alike.values():
            layout = layout_of(x[members[0]])
            # With rates of their own, processes would turn their parts in different ways.
            choices = spec, group.get("maximize", False)
            rate = layout.common(group["lr"], choices, local_of(x[members[0]]).device)
            options = group if rate is group["lr"] else {**group, "lr": rate}
            # By the whole size: every process must take as many parts as the others.
            most = len(members) if x[members[0]].shape[-1] < _TOGETHER_BELOW else 1
            for start in range(0, len(members), most):
                some = members[start : start + most]
                points = [local_of(x[i]) for i in some]
                grads = [local_of(_placed_like(grad[i], x[i])) for i in some]
                kept = {name: [local_of(of[i]) for i in some] for name, of in buffers.items()}
                if points[0].dim() > 2 and len(points[0]) == 0:
                    continue
                if layout.is_local:
                    backend = self._local(points[0])
                    backend.step_(points, grads, kept, rule, options, spec)
                else:
                    self._step_parts(points, grads, kept, layout, rule, options, spec)
        return False

    def _step_parts(
        self,
        x: Pieces,
        grad: Pieces,
        buffers: Mapping[str, Pieces],
        layout: Layout,
        rule: Rule,
        group: Mapping[str, Any],
        spec: StepSpec,
    ) -> None:
        lead = x[0].dim() - 2
        points, grads = gather(x), gather(grad)
        kept: Buffers = {name: gather(pieces, lead) for name, pieces in buffers.items()}
        taken = kept["step"]
        local = rule.propose(grads, kept, taken, group, layout.total)

        # Then the sketch is not finite on any process where a buffer is not, unless the step takes
        # something from the buffers after it.
        sketch_tells = rule.is_linear and not rule.withdrawn(group)

        def finite_everywhere() -> torch.Tensor:
            if sketch_tells:
                return torch.ones_like(taken, dtype=torch.bool)
            return layout.agreed(are_finite(local, taken))

        # Every process has the whole point where gradients are averaged.
        point = Spread.tensor(points, layout._replace(averaged=None))
        proposal = Proposal(
            Spread.tensor(local.direction, layout),
            {name: Spread.tensor(buffer, layout) for name, buffer in local.buffers.items()},
        )
        finite = self.follow_(point, proposal, finite_everywhere, taken, rule, group, spec)
        keep(kept, local, finite)
        scatter(points, x)
        for name, buffer in kept.items():
            scatter(buffer, buffers[name])

    def estimate_orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        """Estimate the error of each matrix from the parts of all processes."""
        layout, batch = layout_of(x), gather([local_of(x)])
        if layout.is_local:
            error = estimate_errors_of_batch(batch)
        else:
            point = Spread.tensor(batch, layout._replace(averaged=None))
            error = estimate_errors_of_batch(point, self.products)
        error = error.view(local_of(x).shape[:-2])
        placements = placements_of_batch(x)
        if placements is None:
            return error
        # Processes hold some of the matrices, and get the errors of all.
        return whole_of(from_part(error, x, placements, x.shape[:-2]))


def _placed_like(grad: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    placements: Any = getattr(p, "placements", None)
    if placements is None or grad.placements == placements:  # type: ignore[attr-defined]
        return grad
    moved: torch.Tensor = grad.redistribute(placements=placements)  # type: ignore[attr-defined]
    return moved
