"""A step that averages sketches of gradients is the step of the mean gradient."""

import contextlib
import copy
import datetime
import io

import geoopt
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
)
from geoopt_projunn.backends.distributed import averages_gradients
from geoopt_projunn.distributed import sketch_gradients_
from geoopt_projunn.nn import orthogonalize_

from ._meshes import digest
from ._traffic import Traffic

N, STEPS = 20, 12
SETTINGS = {
    "gradient": ({}, LowRankUnitary(k=1), (N, N)),
    "momentum": ({"momentum": 0.9, "dampening": 0.5}, LowRankUnitary(k=3), (N, N)),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, LowRankUnitary(k=2, sketch="lsi"), (N, N)),
    "feedback": ({"momentum": 0.5, "error_feedback": 0.9}, LowRankUnitary(k=2), (N, N)),
    "spectral": ({"momentum": 0.9, "normalize": "spectral"}, LowRankUnitary(k=2), (N, N)),
    "wide": ({"momentum": 0.9}, LowRankStiefel(k=2), (8, N)),
    "blocks": ({"momentum": 0.9}, LowRankUnitary(k=2, blocks=2), (2 * N, N)),
    "tall, feedback": ({"error_feedback": 0.5}, LowRankStiefel(k=1), (N, 8)),
}


def own_generator():
    return torch.Generator().manual_seed(distributed.get_rank())


def gradient(generator, shape, dtype=torch.float64):
    """Return one that differs from process to process."""
    return torch.randn(shape, generator=generator, dtype=dtype)


def mean(t):
    t = t.clone()
    distributed.all_reduce(t)
    return t / distributed.get_world_size()


def compare(setting):
    options, manifold, shape = SETTINGS[setting]
    x = manifold.random(*shape, dtype=torch.float64)
    whole = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    # Of the other processes other points: the first step gives them those of the first process.
    if distributed.get_rank() > 0:
        x = manifold.random(*shape, dtype=torch.float64)
    p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    sketch_gradients_(p)
    one, other = (ProjUNNRiemannianSGD([q], lr=0.05, **options) for q in (whole, p))
    generator = own_generator()
    for _ in range(STEPS):
        p.grad = gradient(generator, shape)
        whole.grad = mean(p.grad)
        one.step()
        other.step()
    errors = [(whole - p).abs().max()]
    state, expected = other.state_dict()["state"][0], one.state_dict()["state"][0]
    assert state.keys() == expected.keys()
    errors += [(state[name] - value).abs().max() for name, value in expected.items()]
    return float(max(errors)), digest(p, *state.values())


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_step_is_that_of_the_mean_gradient(world, setting):
    results = world.run(compare, setting)
    assert max(error for error, _ in results) < 1e-9
    assert len({end for _, end in results}) == 1


def resume():
    """Go on from a state dict in a second optimizer, and in the one that gave it."""
    manifold = LowRankUnitary(k=2)
    p = geoopt.ManifoldParameter(manifold.random(N, N))
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, momentum=0.9)
    generator = own_generator()

    def train(q, optimizer, steps):
        for _ in range(steps):
            q.grad = gradient(generator, (N, N), torch.float32)
            optimizer.step()

    train(p, optimizer, 3)
    q = geoopt.ManifoldParameter(p.detach().clone(), manifold=manifold)
    sketch_gradients_([q])
    again = ProjUNNRiemannianSGD([q], lr=0.05, momentum=0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = generator.get_state()
    train(p, optimizer, 3)
    generator.set_state(before)
    train(q, again, 3)
    return torch.equal(p, q)


def test_training_resumes_with_the_same_bits(world):
    assert all(world.run(resume))


def skip(bad, everything):
    manifold = LowRankUnitary(k=2)
    p = geoopt.ManifoldParameter(manifold.random(N, N))
    plain = torch.nn.Parameter(torch.ones(3))
    sketch_gradients_(p)
    option = "all" if everything else "manifold"
    optimizer = ProjUNNRiemannianSGD([p, plain], lr=0.05, momentum=0.9, skip_nonfinite=option)
    p.grad, plain.grad = torch.randn(N, N), torch.ones(3)
    optimizer.step()
    start, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.randn(N, N)
    if distributed.get_rank() == 2:
        p.grad[3, 4] = bad
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    same = torch.equal(p, start) and torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    return same, optimizer.skipped_steps, float(plain[0].detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everything", [False, True])
def test_one_bad_gradient_leaves_all_processes_unstepped(world, bad, everything):
    results = world.run(skip, bad, everything)
    assert len(set(results)) == 1
    same, skipped, _ = results[0]
    assert same
    assert skipped == 1


def skip_wherever(setting):
    """Let one process after the other have one bad entry, each somewhere else."""
    options, manifold, shape = SETTINGS[setting]
    p = geoopt.ManifoldParameter(manifold.random(*shape))
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, **options)
    p.grad = torch.randn(shape)
    optimizer.step()
    bad = torch.nan, torch.inf, -torch.inf
    start, moved = p.detach().clone(), 0
    for trial in range(24):
        p.grad = torch.randn(shape) * (1 + distributed.get_rank())
        where = torch.randint(p.numel(), ())
        if distributed.get_rank() == trial % 4:
            p.grad.view(-1)[where] = bad[trial % 3]
        optimizer.step()
        moved += not torch.equal(p, start)
    state = optimizer.state_dict()["state"][0]
    fine = all(bool(t.isfinite().all()) for t in state.values())
    return moved, fine, optimizer.skipped_steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "blocks"])
def test_a_bad_entry_anywhere_leaves_all_processes_unstepped(world, setting):
    assert world.run(skip_wherever, setting) == [(0, True, 24)] * 4


def skip_for_a_plain_one():
    """A plain parameter has a gradient, which nobody averages, that is bad on one process."""
    group = distributed.new_group(timeout=datetime.timedelta(seconds=10))
    p = geoopt.ManifoldParameter(LowRankUnitary(k=2).random(N, N))
    plain = torch.nn.Parameter(torch.ones(3))
    sketch_gradients_(p, group)
    optimizer = ProjUNNRiemannianSGD([p, plain], lr=0.05, skip_nonfinite="all")
    start = p.detach().clone()
    p.grad, plain.grad = torch.randn(N, N), torch.ones(3)
    if distributed.get_rank() == 1:
        plain.grad[0] = torch.nan
    optimizer.step()
    return torch.equal(p, start), optimizer.skipped_steps, plain.tolist()


@pytest.mark.filterwarnings("ignore")
def test_processes_skip_together_whatever_gradient_is_bad(world):
    assert world.run(skip_for_a_plain_one) == [(True, 1, [1.0] * 3)] * 4


def count(n, k, sketch):
    manifold = LowRankUnitary(k=k, sketch=sketch)
    p = geoopt.ManifoldParameter(torch.eye(n), manifold=manifold)
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, momentum=0.9)
    traffic = Traffic()
    for _ in range(2):
        p.grad = torch.randn(n, n)
        with traffic if optimizer.state else contextlib.nullcontext():
            optimizer.step()
    return traffic.seen


@pytest.mark.parametrize(("sketch", "multiple", "exchanges"), [("tangent", 8, 4), ("lsi", 2, 3)])
def test_a_step_exchanges_few_rows_of_the_gradient(world, sketch, multiple, exchanges):
    n, k = 64, 4
    for seen in world.run(count, n, k, sketch):
        assert {name for name, _ in seen} == {"allreduce_"}
        assert len(seen) == exchanges
        # And two numbers by which processes agree.
        assert sum(size for _, size in seen) == multiple * k * n + 2
    # At n = 4096 and k = 8 that is less than 2 % of the gradient.
    assert 8 * 8 * 4096 + 2 < 0.02 * 4096**2


def under_ddp():
    torch.manual_seed(distributed.get_rank())
    model = torch.nn.Sequential(torch.nn.Linear(N, N), torch.nn.Linear(N, 3)).double()
    orthogonalize_(model, "0.weight", k=2)
    with torch.no_grad():
        for p in model.parameters():
            distributed.broadcast(p, 0)
    whole = torch.nn.Sequential(torch.nn.Linear(N, N), torch.nn.Linear(N, 3)).double()
    whole.load_state_dict(model.state_dict())
    orthogonalize_(whole, "0.weight", k=2)
    ignored = ["0.weight"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    sketch_gradients_(model[0].weight)
    replicas = DistributedDataParallel(model), DistributedDataParallel(whole)
    optimizers = [ProjUNNRiemannianSGD(m.parameters(), lr=0.1, momentum=0.9) for m in replicas]
    generator = own_generator()
    for _ in range(6):
        x = gradient(generator, (4, N))
        for replica, optimizer in zip(replicas, optimizers, strict=True):
            optimizer.zero_grad()
            # Gradients of two batches add up.
            for half in x.chunk(2):
                replica(half).square().mean().backward()
            optimizer.step()
    own = digest(model[0].weight.grad)
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(float((p - q).abs().max()) for p, q in pairs), own, digest(*model.parameters())


def test_replicas_of_ddp_that_ignores_a_matrix_are_stepped_as_if_it_did_not(world):
    results = world.run(under_ddp)
    assert max(error for error, *_ in results) < 1e-9
    assert len({own for _, own, _ in results}) == len(results)
    assert len({end for *_, end in results}) == 1


def copies():
    """Return which of a parameter, its copy and its pickle have their gradients averaged."""
    p = geoopt.ManifoldParameter(LowRankUnitary().random(8, 8))
    sketch_gradients_(p)
    file = io.BytesIO()
    torch.save(torch.nn.ParameterList([p]), file)
    file.seek(0)
    (loaded,) = torch.load(file, weights_only=False)
    return [averages_gradients(q) is not None for q in (p, copy.deepcopy(p), loaded)]


def test_copies_and_pickles_are_not_marked(world):
    assert world.run(copies) == [[True, False, False]] * 4


def refuse():
    good = geoopt.ManifoldParameter(LowRankUnitary(k=2).random(8, 8))
    with pytest.raises(TypeError, match=r"`params\[1\]` must be on LowRankUnitary or LowRankSt"):
        sketch_gradients_([good, torch.nn.Parameter(torch.eye(8))])
    for manifold in (LowRankUnitary(k=None), LowRankUnitary(sketch="column")):
        with pytest.raises(ValueError, match=r"`params\[0\]` must have a finite k and the sketch"):
            sketch_gradients_(geoopt.ManifoldParameter(manifold.random(8, 8)))
    others = distributed.new_group([0, 1])
    if distributed.get_rank() > 1:
        with pytest.raises(ValueError, match=r"`group` must be one that .* without process [23]"):
            sketch_gradients_(good, others)
        assert averages_gradients(good) is None
    sketch_gradients_(good)
    plain = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianAdam([("plain", plain), ("w", good)])
    good.grad, plain.grad = torch.ones(8, 8), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"Steps of parameter `w` .* needs ProjUNNRiemannianSGD"):
        optimizer.step()
    # Changed since it was marked.
    good.manifold = LowRankUnitary(sketch="column")
    optimizer = ProjUNNRiemannianSGD([good])
    with pytest.raises(RuntimeError, match=r"the sketch 'tangent' or 'lsi', got k=4, sketch='col"):
        optimizer.step()
    return bool((plain == 1).all()) and not optimizer.state


def test_what_is_not_linear_in_the_gradient_is_refused(world):
    assert all(world.run(refuse))


def test_without_a_process_group_there_is_an_error():
    p = geoopt.ManifoldParameter(LowRankUnitary().random(8, 8))
    with pytest.raises(RuntimeError, match="needs a process group"):
        sketch_gradients_(p)
