"""Parts of matrices that are in the memory of the host, while their mesh is one of GPUs."""

import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam

from ._meshes import local
from .test_steps import parameter


@pytest.fixture
def mesh():
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems like you did not set/select the default")
            mesh = init_device_mesh("cuda", (2,))
        yield mesh
    except ZeroDivisionError:
        pytest.skip("this torch makes no mesh of GPUs where there is none")
    finally:
        distributed.destroy_process_group()


def offloaded(mesh, shape, dim):
    """Return zeros as CPUOffloadPolicy of FSDP leaves them: torch moves only what has values."""
    own = [size // 2 if i == dim else size for i, size in enumerate(shape)]
    part = torch.empty(own, device="meta")
    stride = torch.empty(shape).stride()
    whole = DTensor.from_local(part, mesh, [Shard(dim)], shape=torch.Size(shape), stride=stride)
    return torch.zeros_like(whole, device="cpu")


@pytest.mark.parametrize(("shape", "dim"), [((8, 8), 0), ((8, 8), 1), ((4, 6, 6), 0)])
def test_state_lies_where_its_parameter_does(mesh, shape, dim):
    p = parameter(offloaded(mesh, shape, dim), LowRankUnitary())
    # Of length zero: nothing is exchanged here, and points are not probed.
    optimizer = ProjUNNRiemannianAdam([p], lr=0.0, second_moment="scalar")
    p.grad = offloaded(mesh, shape, dim)
    optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg"].placements == p.placements
    for name, t in state.items():
        part = local(t)
        assert part.is_cpu, name
        assert part.eq(1 if name == "step" else 0).all(), name
    errors = p.manifold.estimate_orthogonality_error(p.detach())
    assert errors.is_cpu
    assert errors.shape == shape[:-2]
