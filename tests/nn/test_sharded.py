"""A parameter on LowRankUnitary becomes a DTensor only where it is told to keep its manifold."""

import geoopt
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryRNN,
    orthogonality_errors,
    orthogonalize_,
)
from tests._able import broadcast_complex_numbers, skip_unless


@pytest.fixture(scope="module")
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        skip_unless(broadcast_complex_numbers)
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


class Model(torch.nn.Module):
    """An orthogonal part between plain ones."""

    def __init__(self, part):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.part = part
        self.last = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.part(self.first(x))[0])


def treated(module, name):
    orthogonalize_(module, name)
    return module


PARTS = {
    "layer": (lambda: OrthogonalRNN(3, 8), "`weight_hh_l0` of OrthogonalRNN"),
    "unitary layer": (lambda: UnitaryRNN(3, 8), "`weight_hh_l0` of UnitaryRNN"),
    "cell": (lambda: OrthogonalRNNCell(3, 8), "`weight_hh` of OrthogonalRNNCell"),
    "convolution": (lambda: OrthogonalConv2d(4, 4, 4), "`weight_real` of OrthogonalConv2d"),
    "linear": (lambda: treated(torch.nn.Linear(8, 8), "weight"), "`weight` of Linear"),
    "attention": (
        lambda: treated(torch.nn.MultiheadAttention(8, 2), "out_proj.weight"),
        "`out_proj.weight` of NonDynamicallyQuantizableLinear",
    ),
    "rnn": (lambda: treated(torch.nn.RNN(8, 8), "weight_hh_l0"), "`weight_hh_l0` of RNN"),
}
SHARDINGS = {
    "the model": lambda model, mesh: fully_shard(model, mesh=mesh),
    "the part": lambda model, mesh: fully_shard(model.part, mesh=mesh),
    "distributed": lambda model, mesh: distribute_module(model, mesh),
    "assigned": lambda model, mesh: model.part.load_state_dict(
        {n: distribute_tensor(p, mesh) for n, p in model.part.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("how", SHARDINGS)
@pytest.mark.parametrize("name", PARTS)
def test_sharding_a_parameter_on_the_manifold_is_refused(mesh, name, how):
    make, named = PARTS[name]
    model = Model(make())
    words = rf"{named} is on the LowRankUnitary\(.*DTensor is to .*keep_manifolds.*`ignored_params`"
    with pytest.raises((TypeError, RuntimeError), match=words):
        SHARDINGS[how](model, mesh)
    leaf = named.split("`")[1]
    assert type(model.part.get_parameter(leaf)) is geoopt.ManifoldParameter


def test_tensor_parallelism_is_refused(mesh):
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 8))
    orthogonalize_(model, "1.weight")
    with pytest.raises(
        TypeError, match=r"`1.weight` of Linear is on .*a DTensor is to take its place"
    ):
        parallelize_module(model, mesh, {"1": ColwiseParallel()})
    parallelize_module(model, mesh, {"0": ColwiseParallel()})
    assert isinstance(model[0].weight, DTensor)


def test_another_manifold_that_is_set_on_a_sharded_parameter_is_kept(mesh):
    model = torch.nn.Linear(8, 8)
    orthogonalize_(model, "weight")
    with keep_manifolds(model):
        fully_shard(model, mesh=mesh)
    other = LowRankUnitary(1, sweep=2)
    model.weight.manifold = other
    model.weight = torch.nn.Parameter(model.weight.detach().clone())
    assert isinstance(model.weight, DTensor)
    assert model.weight.manifold == other


def test_a_sharded_weight_is_not_made_orthogonal(mesh):
    model = fully_shard(torch.nn.Linear(8, 8), mesh=mesh)
    with pytest.raises(TypeError, match=r"`weight` is a DTensor.*before"):
        orthogonalize_(model, "weight")


def train(model, x, steps=3):
    optimizer = ProjUNNRiemannianSGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("how", ["ignored", "other modules"])
def test_the_rest_of_the_model_may_be_sharded(mesh, how):
    torch.manual_seed(0)
    model, whole = Model(OrthogonalRNN(3, 8)), Model(OrthogonalRNN(3, 8))
    model.load_state_dict(whole.state_dict())
    if how == "ignored":
        fully_shard(model, mesh=mesh, ignored_params={model.part.weight_hh_l0})
        assert isinstance(model.part.weight_ih_l0, DTensor)
    else:
        fully_shard(model.first, mesh=mesh)
        fully_shard(model.last, mesh=mesh)
    assert isinstance(model.first.weight, DTensor)
    x = torch.randn(5, 2, 3)
    for one in (model, whole):
        train(one, x)
    assert type(model.part.weight_hh_l0) is geoopt.ManifoldParameter
    torch.testing.assert_close(model.part.weight_hh_l0, whole.part.weight_hh_l0)
    assert orthogonality_errors(model, exact=True)["part.weight_hh_l0"] < 1e-5


@pytest.mark.usefixtures("mesh")
def test_replicas_of_modules_of_others_keep_the_manifold():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    orthogonalize_(module, "0.weight")
    weight, before = module[0].weight, module[0].weight.detach().clone()
    train(DistributedDataParallel(module), torch.randn(5, 8))
    assert module[0].weight is weight
    assert not torch.equal(weight, before)
    assert type(weight) is geoopt.ManifoldParameter
    assert orthogonality_errors(module, exact=True)["0.weight"] < 1e-5


@pytest.mark.usefixtures("mesh")
@pytest.mark.filterwarnings("ignore:.*(is deprecated|switching to use)")
# FullyShardedDataParallel itself refuses parts that are real and complex.
@pytest.mark.parametrize("name", [n for n in PARTS if n not in ("convolution", "unitary layer")])
def test_a_weight_that_was_flattened_is_refused_by_the_first_step(name):
    model = Model(PARTS[name][0]())
    flat = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    optimizer = ProjUNNRiemannianSGD(flat.parameters(), lr=0.1)
    for p in flat.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in flat.parameters()]
    with pytest.raises(TypeError, match=r"`part.*` must stay .*ignored_modules"):
        optimizer.step()
    for p, value in zip(flat.parameters(), before, strict=True):
        assert torch.equal(p, value)


@pytest.mark.usefixtures("mesh")
@pytest.mark.filterwarnings("ignore:.*(is deprecated|switching to use)")
def test_a_module_that_is_ignored_by_flattening_is_stepped():
    model = Model(OrthogonalRNN(3, 8))
    flat = FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), ignored_modules=[model.part]
    )
    optimizer = ProjUNNRiemannianSGD(flat.parameters(), lr=0.1)
    flat(torch.randn(5, 2, 3)).square().sum().backward()
    before = model.part.weight_hh_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(model.part.weight_hh_l0, before)
    assert orthogonality_errors(model)["part.weight_hh_l0"] < 1e-5
