"""Steps of matrices whose parts lie on several processes are the steps of whole matrices."""

from unittest import mock

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.backends.distributed import Distributed, collectives
from tests._able import broadcast_complex_numbers, skip_unless

from ._meshes import PLACINGS, digest, local, mesh_of, placed

SGD, ADAM = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
N, STEPS = 22, 12
SETTINGS = {
    "gradient": (SGD, {"lr": 0.1}, {"k": 1}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, {"k": 3, "sweep": 2}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"k": 2}),
    "feedback": (SGD, {"lr": 0.1, "momentum": 0.5, "error_feedback": 0.9}, {"k": 2}),
    "lsi": (
        SGD,
        {"lr": 0.1, "maximize": True},
        {"k": N // 2, "sketch": "lsi", "retraction": "polar"},
    ),
    "column": (SGD, {"lr": 0.1}, {"k": 2, "sketch": "column", "retraction": "cayley"}),
    "angle": (SGD, {"lr": 0.1, "momentum": 0.9, "normalize": "angle"}, {"k": 1}),
    "spectral": (ADAM, {"lr": 0.1, "normalize": "spectral"}, {"k": 3}),
    "adam": (ADAM, {"lr": 0.02, "second_moment": "elementwise"}, {"k": 2}),
    "mean": (ADAM, {"lr": 0.1, "second_moment": "mean"}, {"k": 2}),
    "scalar": (ADAM, {"lr": 0.1, "second_moment": "scalar", "amsgrad": True}, {"k": 1}),
}
CASES = {(setting, "rows of 3", torch.float64) for setting in SETTINGS}
CASES |= {("nesterov", placing, torch.float64) for placing in PLACINGS}
CASES |= {("feedback", "tiles", torch.complex128), ("adam", "rows of 4", torch.complex128)}
CASES |= {("scalar", "copies of rows", torch.float64), ("column", "tiles", torch.float64)}
# Two columns are swept, which lie on one process or on two.
CASES |= {("momentum", "tiles", torch.float64)}


def parameter(x, manifold):
    p = torch.nn.Parameter(x)
    p.manifold = manifold
    return p


def descend(p, target, kind, options, steps=STEPS):
    optimizer = kind([("weight", p)], **options)
    for step in range(steps):
        p.grad = (p.detach() - target) * (1 + step % 3)
        optimizer.step()
    return optimizer


def compare(setting, placing, dtype):
    kind, options, config = SETTINGS[setting]
    manifold = LowRankUnitary(**config)
    x, target = manifold.random(N, N, dtype=dtype).as_subclass(torch.Tensor), torch.randn(N, N)
    whole = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    p, spread_target = placed(x.clone(), placing), placed(target.to(dtype), placing)
    if p is None:
        return None
    p = parameter(p, manifold)
    one = descend(whole, target.to(dtype), kind, options)
    seen = []

    def turn_(self, x, rotation, *rest):
        seen.append(digest(rotation.rows, rotation.delta))
        return original(self, x, rotation, *rest)

    original = Distributed.turn_
    with mock.patch.object(Distributed, "turn_", turn_):
        other = descend(p, spread_target, kind, options)
    state = other.state[p]
    errors = [(p.full_tensor() - whole).abs().max()]
    for name, value in one.state[whole].items():
        full = state[name].full_tensor() if hasattr(state[name], "placements") else state[name]
        errors.append((full - value).abs().max())
    moved = float((whole.detach() - x).abs().max())
    alike = [name for name, value in state.items() if value.shape == p.shape]
    assert all(state[name].placements == p.placements for name in alike)
    assert not any(hasattr(state[name], "placements") for name in {*state} - {*alike})
    return max(map(float, errors)), moved, seen, digest(p.to_local(), *map(local, state.values()))


@pytest.mark.parametrize(("setting", "placing", "dtype"), sorted(CASES, key=str))
def test_steps_of_parts_are_those_of_the_whole(world, setting, placing, dtype):
    if dtype.is_complex:
        skip_unless(broadcast_complex_numbers)  # and joins none
    results = [result for result in world.run(compare, setting, placing, dtype) if result]
    shape = PLACINGS[placing][0]
    assert len(results) == torch.Size(shape).numel()
    for error, moved, seen, _ in results:
        assert error < 1e-9
        assert moved > 0.01
        # What is small is the same bits on every process.
        assert seen == results[0][2]
        assert len(seen) == (0 if placing == "copies" else STEPS)
    if placing == "copies":
        assert len({end for *_, end in results}) == 1
    if placing == "copies of rows":
        assert results[0][3] == results[2][3] != results[1][3] == results[3][3]


def differ():
    """Step copies whose sums are rounded in another way."""
    copy = mesh_of((2, 2)).get_local_rank(0)
    original = collectives.sum_over

    def sum_over(t, group):
        return original(t, group) * (1 + copy * 1e-12)

    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N, dtype=torch.float64).as_subclass(torch.Tensor)
    p = parameter(placed(x, "copies of rows"), manifold)
    target = placed(torch.randn(N, N, dtype=torch.float64), "copies of rows")
    with mock.patch.object(collectives, "sum_over", sum_over):
        descend(p, target, SGD, {"lr": 0.1, "momentum": 0.9}, steps=2)
    return digest(p.to_local())


def test_copies_take_the_sums_of_the_first(world):
    ends = world.run(differ)
    assert ends[:2] == ends[2:]


def differ_in_rates(placing, normalize, device_rates):
    """Return how far steps at a rate for each process are from those at the largest of them."""
    torch.manual_seed(0)
    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N, dtype=torch.float64).as_subclass(torch.Tensor)
    target = torch.randn(N, N, dtype=torch.float64)
    ends = []
    for rate in (0.1 * (1 + distributed.get_rank()), 0.4):
        p, spread_target = placed(x.clone(), placing), placed(target, placing)
        lr = torch.tensor(rate) if device_rates else rate
        descend(parameter(p, manifold), spread_target, SGD, {"lr": lr, "normalize": normalize})
        ends.append(p.full_tensor())
    error = torch.linalg.matrix_norm(ends[0].mT @ ends[0] - torch.eye(N, dtype=torch.float64))
    return float(error), torch.equal(*ends), float((ends[0] - x).abs().max())


@pytest.mark.parametrize(
    ("placing", "normalize", "device_rates"),
    [
        ("rows of 4", None, False),
        ("rows of 4", "angle", True),
        ("columns of 4", None, False),
        ("tiles", "spectral", False),
        ("copies of rows", None, False),
    ],
)
def test_processes_that_share_a_matrix_take_the_largest_of_their_rates(
    world, placing, normalize, device_rates
):
    """Turned by different angles, the parts would be off the manifold together."""
    for error, is_as_with_the_largest, moved in world.run(
        differ_in_rates, placing, normalize, device_rates
    ):
        assert error < 1e-12
        assert is_as_with_the_largest
        assert moved > 0.01


def rest_on_the_first():
    """Return whether steps at a rate of zero on the first process are those at the largest."""
    torch.manual_seed(0)
    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N, dtype=torch.float64).as_subclass(torch.Tensor)
    ends = []
    for rate in (0.1 * distributed.get_rank(), 0.1 * 3):
        p = parameter(placed(x.clone(), "rows of 4"), manifold)
        optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
        for lr in (0.1, rate, rate):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends.append(p.full_tensor())
    return torch.equal(*ends)


def test_a_rate_of_zero_on_one_process_counts_as_any_other(world):
    """A step without length leaves out the sweep, and so an exchange: not on one process alone."""
    assert all(world.run(rest_on_the_first))


def differ_in_choices(placing, options, config):
    """The second process has other options than the others, from the second step on."""
    torch.manual_seed(0)
    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N, dtype=torch.float64).as_subclass(torch.Tensor)
    target = placed(torch.randn(N, N, dtype=torch.float64), placing)
    p = parameter(placed(x, placing), manifold)
    optimizer = descend(p, target, SGD, {"lr": 0.1}, steps=1)
    before = p.full_tensor().clone()
    if distributed.get_rank() == 1:
        optimizer.param_groups[0].update(options)
        p.manifold = LowRankUnitary(**{"k": 2, **config})
    p.grad = p.detach() - target
    words = "was skipped: .* not finite, or processes differ in its manifold, in `normalize` or"
    with pytest.warns(UserWarning, match=words):
        optimizer.step()
    return torch.equal(p.full_tensor(), before), optimizer.skipped_steps


@pytest.mark.parametrize(
    ("placing", "options", "config"),
    [
        ("rows of 4", {"normalize": "angle"}, {}),
        ("tiles", {"maximize": True}, {}),
        ("copies of rows", {}, {"retraction": "cayley"}),
    ],
)
def test_processes_that_would_turn_a_matrix_in_different_ways_skip_the_step(
    world, placing, options, config
):
    """Taken, it would leave the parts off the manifold together."""
    assert world.run(differ_in_choices, placing, options, config) == [(True, 1)] * 4


def overflow():
    """One second moment overflows, and the direction, which is divided by it, is finite."""
    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N).as_subclass(torch.Tensor)
    p = parameter(placed(x.clone(), "rows of 4"), manifold)
    grad = torch.randn(N, N)
    grad[-1, 3] = 1e25
    p.grad = placed(grad, "rows of 4")
    optimizer = ADAM([p], lr=0.1)
    optimizer.step()
    return torch.equal(p.full_tensor(), x), optimizer.skipped_steps


@pytest.mark.filterwarnings("ignore")
def test_a_buffer_that_overflows_on_one_process_leaves_all_unstepped(world):
    assert world.run(overflow) == [(True, 1)] * 4


def refuse():
    manifold = LowRankUnitary(k=2)
    x = manifold.random(N, N).as_subclass(torch.Tensor)
    plain = torch.nn.Parameter(torch.ones(3))
    cases = [
        (manifold, {"momentum": 0.9, "momentum_space": "tangent"}, r"`momentum_space` of .*`w` .*"),
        (LowRankUnitary(k=2, sketch="coordinates"), {}, r"Parameter `w` .* must have another `sk"),
    ]
    for one, options, words in cases:
        p = parameter(placed(x.clone(), "rows of 4"), one)
        optimizer = SGD([("plain", plain), ("w", p)], lr=0.1, **options)
        p.grad, plain.grad = torch.ones_like(p), torch.ones(3)
        with pytest.raises(ValueError, match=words):
            optimizer.step()
        assert torch.equal(p.full_tensor(), x)
        assert not optimizer.state
    return bool((plain == 1).all())


def test_steps_that_need_the_whole_matrix_are_refused(world):
    assert all(world.run(refuse))
