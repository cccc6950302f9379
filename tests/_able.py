"""What the torch at hand can do: older versions lack some of it."""

import functools
import inspect

import geoopt
import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.torch_version import TorchVersion

from geoopt_projunn.backends.distributed.collectives import concatenate_over


def skip_unless(able):
    """Skip a test that needs what this torch is not able to do."""
    if not able():
        pytest.skip(f"this torch is not able to {able.__doc__}")


@functools.cache
def broadcast_complex_numbers():
    """broadcast complex numbers by gloo"""
    alone = not distributed.is_initialized()
    if alone:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return _runs(
            lambda: distributed.broadcast(torch.zeros(1, dtype=torch.complex64), 0), RuntimeError
        )
    finally:
        if alone:
            distributed.destroy_process_group()


@functools.cache
def gather_without_values():
    """gather tensors that have no values"""
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        part, group = torch.empty(1, 1, 1, device="meta"), distributed.group.WORLD
        return _runs(lambda: concatenate_over(part, group, 2), NotImplementedError)
    finally:
        distributed.destroy_process_group()


@functools.cache
def fake_parameters_of_a_subclass():
    """compute with parameters of a subclass that have no values"""
    mode = torch._subclasses.FakeTensorMode()
    module = _with_a_manifold()._apply(mode.from_tensor)
    with mode:
        return _runs(lambda: module(torch.empty(1, 2)), TypeError)


@functools.cache
def export_parameters_of_a_subclass():
    """export parameters of a subclass by tracing Python"""
    export = functools.partial(torch.export.export, _with_a_manifold(), (torch.ones(1, 2),))
    return _runs(lambda: export(strict=True), torch._dynamo.exc.InternalTorchDynamoError)


def compile_steps():
    """compile steps on a CPU without corrupting memory"""
    return TorchVersion(torch.__version__) >= "2.9"


def limit_compilations_of_one_function():
    """limit how often one function is compiled"""
    return "recompile_limit" in inspect.signature(torch.compile).parameters


@functools.cache
def read_bits_within_vmap():
    """read the bits of numbers within torch.func.vmap"""
    read = torch.func.vmap(lambda x: x.view(torch.int32))
    return _runs(lambda: read(torch.ones(2, 2)), RuntimeError)


@functools.cache
def list_numbers_within_a_gradient():
    """list the numbers of a tensor within torch.func.grad"""
    numbers = torch.ones(2)
    take = torch.func.grad(lambda x: x * sum(numbers.tolist()))
    return _runs(lambda: take(torch.ones(())), RuntimeError)


def _with_a_manifold():
    module = torch.nn.Linear(2, 2)
    module.weight = geoopt.ManifoldParameter(torch.eye(2), manifold=geoopt.Stiefel())
    return module


def _runs(call, error):
    try:
        call()
    except error:
        return False
    return True
