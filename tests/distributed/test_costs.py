"""What processes exchange in a step is O(kn) numbers."""

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._meshes import PLACINGS, placed
from ._traffic import Traffic
from .test_steps import parameter

ADAM = ProjUNNRiemannianAdam, {"second_moment": "scalar"}
SGD = ProjUNNRiemannianSGD, {"momentum": 0.9}
FEEDBACK = ProjUNNRiemannianSGD, {"error_feedback": 0.9}
CASES = [
    # Of each product one exchange, and one of the rate; error feedback adds a product and a flag,
    # Adam a flag, and the scalar moment one number.
    ("rows of 4", *SGD, "tangent", 14, {"allreduce_", "_allgather_base_"}),
    ("columns of 4", *SGD, "tangent", 14, {"allreduce_", "_allgather_base_"}),
    ("rows of 4", *SGD, "lsi", 8, {"allreduce_", "_allgather_base_"}),
    ("rows of 4", *FEEDBACK, "lsi", 10, {"allreduce_", "_allgather_base_"}),
    ("rows of 4", *ADAM, "tangent", 16, {"allreduce_", "_allgather_base_"}),
    ("copies of rows", *SGD, "tangent", 21, {"allreduce_", "_allgather_base_", "broadcast_"}),
    ("copies", *SGD, "tangent", 0, set()),
    ("tiles", *SGD, "tangent", 28, {"allreduce_", "_allgather_base_"}),
]


def count(n, k, placing, kind, options, sketch):
    """Count the exchanges of the first step and of the second, and of an estimate."""
    x = LowRankUnitary().random(n, n).as_subclass(torch.Tensor)
    p = parameter(placed(x, placing), LowRankUnitary(k=k, sketch=sketch))
    optimizer = kind([p], lr=0.01, **options)
    seen = []
    for _ in range(2):
        p.grad = torch.randn_like(p)
        with Traffic() as traffic, CommDebugMode() as mode:
            optimizer.step()
        seen.append((traffic.seen, mode.get_total_counts()))
    with Traffic() as traffic:
        p.manifold.estimate_orthogonality_error(p)
    return *seen, traffic.numbers


@pytest.mark.parametrize(("placing", "kind", "options", "sketch", "exchanges", "kinds"), CASES)
def test_a_step_exchanges_few_rows(world, placing, kind, options, sketch, exchanges, kinds):
    k, numbers = 2, []
    for n in (48, 96):
        results = world.run(count, n, k, placing, kind, options, sketch)
        for (first, _), (second, counted), estimate in results:
            # Of the first step alone, to agree on it before the probe and after: along each
            # dimension of the mesh two numbers.
            agreed = 2 * 2 * len(PLACINGS[placing][0])
            assert len(second) == counted == exchanges
            assert {name for name, _ in second} == kinds
            # The largest are 4k columns of the gradient, and rows of the basis.
            assert all(size <= 4 * k * n for _, size in first + second)
            # The probe multiplies with four rows, twice.
            probe = sum(size for _, size in first) - sum(size for _, size in second) - agreed
            assert probe == estimate <= 3 * 4 * n
        numbers.append(sum(size for _, size in results[0][1][0]))
    # A multiple of n, and a few numbers: three of the rate and of what else processes must have in
    # common, on both axes or copies; the flag, the scalar.
    assert 0 <= 2 * numbers[0] - numbers[1] <= 6


def far_off(placing):
    p = parameter(placed(2 * torch.eye(8), placing), LowRankUnitary())
    plain = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianSGD([("plain", plain), ("w", p)], lr=0.1)
    p.grad, plain.grad = torch.ones_like(p), torch.ones(3)
    with pytest.raises(ValueError, match=r"Parameter `w` .* must satisfy xᴴx = I before its first"):
        optimizer.step()
    return bool((plain == 1).all()) and not optimizer.state


@pytest.mark.parametrize("placing", ["rows of 4", "tiles", "copies"])
def test_every_process_refuses_a_point_that_is_off_the_manifold(world, placing):
    assert all(world.run(far_off, placing))
