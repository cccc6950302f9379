"""What others do to a model in training goes together with matrices in parts, and whole ones."""

import copy
import datetime
import os
import time

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import orthogonality_errors, orthogonalize_

from ._meshes import digest, mesh_of

N, STEPS = 12, 4


class Model(torch.nn.Module):
    def __init__(self, checkpoints=False):
        super().__init__()
        double = {"dtype": torch.float64}
        self.first, self.last = torch.nn.Linear(N, N, **double), torch.nn.Linear(N, 2, **double)
        orthogonalize_(self, "first.weight", k=2)
        self.checkpoints = checkpoints

    def forward(self, x):
        inner = torch.nn.Sequential(self.first, torch.nn.Tanh())
        y = checkpoint(inner, x, use_reentrant=False) if self.checkpoints else inner(x)
        return self.last(y)


def full(p):
    return p.full_tensor() if hasattr(p, "placements") else p


def data(steps=STEPS):
    """Return batches of all processes, and the part of each that is for this one."""
    generator = torch.Generator().manual_seed(1)
    batches = torch.randn(steps, 8, N, generator=generator, dtype=torch.float64)
    rank = distributed.get_rank()
    return zip(batches, batches[:, 2 * rank : 2 * rank + 2], strict=True)


def loss_of(model, x):
    return (model(x) - x[:, :2]).square().mean()


def train(model, parts, optimizer, *, halves=1, clip=None):
    """Train on a part of each batch, a loss for each process or for all of them."""
    for whole, own in data():
        optimizer.zero_grad()
        for x in (own if parts else whole).chunk(halves):
            (loss_of(model, x) / halves).backward()
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def compare(change, wrap, options):
    """Return how far a model that is trained in parts is from one that is not."""
    torch.manual_seed(0)
    model = Model(checkpoints=options.pop("checkpoints", False))
    alone = Model()
    alone.load_state_dict(copy.deepcopy(model.state_dict()))
    kind = options.pop("kind", ProjUNNRiemannianSGD)
    hyper = {"lr": 0.02, "momentum": 0.9} if kind is ProjUNNRiemannianSGD else {"lr": 0.02}
    wrapped, optimizer = wrap(model, kind, hyper)
    train(change(wrapped), True, optimizer, **options)
    options = {**options, "halves": 1}
    train(alone, False, kind(alone.parameters(), **hyper), **options)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    errors = [float((full(p) - q).abs().max()) for p, q in pairs]
    off = orthogonality_errors(model, exact=True)["first.weight"]
    return max(errors), off, digest(*map(full, model.parameters()))


def in_parts(mesh):
    def wrap(model, kind, hyper):
        with keep_manifolds(model):
            fully_shard(model.first, mesh=mesh)
            fully_shard(model, mesh=mesh)
        assert hasattr(model.first.weight, "placements")
        return model, kind(model.parameters(), **hyper)

    return wrap


def replicated(hook=None):
    def wrap(model, kind, hyper):
        replica = DistributedDataParallel(model)
        if hook is not None:
            replica.register_comm_hook(None, hook)
        return replica, kind(model.parameters(), **hyper)

    return wrap


def zero(model, kind, hyper):
    # Its module scripts functions as it is imported, which torch warns about.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, **hyper)
    return DistributedDataParallel(model), optimizer


def compiled(model):
    return torch.compile(model, backend="eager")


def same(model):
    return model


def split_twice():
    """Return how far a model is from one that is whole, if tensor parallelism and FSDP split it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def split(model, **options):
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        with keep_manifolds(model):
            parallelize_module(model, mesh["tensor"], plan)
            fully_shard(model, mesh=mesh["data"], **options)

    def other_axis(p):
        is_split = isinstance(p, DTensor) and p.dim() == 2
        return Shard(1 - p.placements[0].dim if is_split else 0)

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(N, N, dtype=torch.float64) for _ in range(2)))
    for name in ("0.weight", "1.weight"):
        orthogonalize_(model, name, k=2)
    alone, other = copy.deepcopy(model), copy.deepcopy(model)
    split(model, shard_placement_fn=other_axis)
    with pytest.raises(ValueError, match=r"got \(_Strided.*`shard_placement_fn` .*, and average"):
        split(other)
    optimizers = [ProjUNNRiemannianSGD(m.named_parameters(), lr=0.05) for m in (model, alone)]
    for whole, _ in data():
        own = whole.chunk(2)[mesh["data"].get_local_rank()]
        for m, optimizer, x in zip((model, alone), optimizers, (own, whole), strict=True):
            optimizer.zero_grad()
            m(x).pow(4).mean().backward()
            optimizer.step()
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max(float((full(p) - q).abs().max()) for p, q in pairs)


def test_tensor_parallelism_and_fsdp_may_split_both_axes(world):
    assert max(world.run(split_twice)) < 1e-14


CASES = {
    "parts": (same, lambda: in_parts(mesh_of((4,))), {}),
    "copies of parts": (same, lambda: in_parts(mesh_of((2, 2))), {}),
    "adam": (same, lambda: in_parts(mesh_of((4,))), {"kind": ProjUNNRiemannianAdam}),
    "accumulated": (same, lambda: in_parts(mesh_of((4,))), {"halves": 2}),
    "clipped": (same, lambda: in_parts(mesh_of((4,))), {"clip": 0.05}),
    "compiled": (compiled, lambda: in_parts(mesh_of((4,))), {}),
    "checkpointed": (same, lambda: in_parts(mesh_of((4,))), {"checkpoints": True}),
    "zero": (same, lambda: zero, {}),
    "replicas": (same, replicated, {}),
    "hooked": (same, lambda: replicated(fp16_compress_hook), {}),
}


def run(name):
    change, wrap, options = CASES[name]
    return compare(change, wrap(), dict(options))


@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_one_process(world, name):
    results = world.run(run, name)
    for error, off, _ in results:
        # The hook rounds gradients to float16.
        assert error < (1e-2 if name == "hooked" else 1e-9)
        assert off < 1e-12
    assert len({end for *_, end in results}) == 1


def skip(option):
    torch.manual_seed(0)
    model = Model()
    with keep_manifolds(model):
        fully_shard(model.first, mesh=mesh_of((4,)))
        fully_shard(model, mesh=mesh_of((4,)))
    optimizer = ProjUNNRiemannianSGD(
        model.named_parameters(), lr=0.1, momentum=0.9, skip_nonfinite=option
    )
    for step in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, N, dtype=torch.float64)).square().mean().backward()
        own = model.first.weight.grad.to_local()
        if step == 1 and distributed.get_rank() == 1:
            own[0, 3] = torch.nan
        start = [p.to_local().detach().clone() for p in model.parameters()]
        if step == 1:
            with pytest.warns(UserWarning, match="not finite"):
                optimizer.step()
        else:
            optimizer.step()
    stayed = [
        name
        for (name, p), value in zip(model.named_parameters(), start, strict=True)
        if torch.equal(p.to_local(), value)
    ]
    return stayed, optimizer.skipped_steps, optimizer.skipped_steps_by_parameter()["first.weight"]


def skip_with_an_idle_expert(bad):
    """Return at which of three steps the shared layer stays, a row of whose processes has no grad
    of the expert at the second one.
    """
    torch.manual_seed(0)
    expert, rest = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    orthogonalize_(rest, "weight", k=2)
    mesh = mesh_of((2, 2))
    fully_shard(expert, mesh=mesh["parts"])
    with keep_manifolds(rest):
        fully_shard(rest, mesh=mesh)
    # The expert first: its processes would exchange flags of it before those of the whole mesh.
    params = [*expert.parameters(), *rest.parameters()]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1, skip_nonfinite="all")
    stays = []
    for step in range(3):
        optimizer.zero_grad()
        x = torch.randn(4, 8)
        is_idle = step == 1 and mesh.get_local_rank("copies") == 1
        rest(x if is_idle else expert(x)).pow(4).mean().backward()
        if step == 1 and distributed.get_rank() == bad:
            rest.weight.grad.to_local()[0, 0] = torch.nan
        before = rest.weight.to_local().detach().clone()
        optimizer.step()
        stays.append(torch.equal(rest.weight.to_local(), before))
    return stays


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", range(4))
def test_all_skip_whichever_parameters_have_gradients(world, bad):
    assert world.run(skip_with_an_idle_expert, bad) == [[False, True, False]] * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", ["manifold", "all"])
def test_a_bad_gradient_in_one_part_leaves_all_parts_unstepped(world, option):
    names = ["first.weight", "first.bias", "last.weight", "last.bias"]
    for stayed, skipped, of_weight in world.run(skip, option):
        # A process without a part of `last.weight` sees nothing move.
        expected = names if option == "all" else ["first.weight"]
        assert set(expected) <= set(stayed) <= {*expected, "last.weight", "last.bias"}
        assert skipped == of_weight == 1


_PATIENCE = 8


def die(rank):
    group = distributed.new_group(timeout=datetime.timedelta(seconds=_PATIENCE))
    mesh = DeviceMesh.from_group(group, "cpu")
    model, optimizer = in_parts(mesh)(Model(), ProjUNNRiemannianSGD, {"lr": 0.1})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    if distributed.get_rank() == rank:
        os._exit(1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)connection|timed out|peer"):
        optimizer.step()
    return time.monotonic() - start


def test_a_process_that_dies_ends_the_step_of_the_others(world):
    seconds = world.run(die, 3, dies=3)
    assert len(seconds) == 3
    # The time-out of the group, and some for a busy machine.
    assert max(seconds) < _PATIENCE + 20
