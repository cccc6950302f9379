"""Triton kernels, interpreted on a CPU.

In a process of its own, which `test_triton.py` starts: the interpreter has to be asked for before
anything imports Triton. It is slow, so these are few cases: together they have every kernel, rule,
retraction, dtype and layout, sizes of one tile, of several and of parts of tiles.
"""

import itertools

import pytest
import torch

from geoopt_projunn.backends.triton import launching, sizes, support


def pytest_collect_file():
    if not support.INTERPRETED:
        pytest.skip("kernels are not interpreted in this process: TRITON_INTERPRET=1 is not set")


# Entries around each piece of memory.
_AROUND = 64


@pytest.fixture(params=["one kernel", "many kernels"])
def small(request, monkeypatch):
    """Take steps of small matrices by one kernel, and as those of large ones are taken."""
    if request.param == "many kernels":
        monkeypatch.setattr(launching, "_FEW_ROWS", 0)
    return request.param == "one kernel"


@pytest.fixture
def spoilt_memory(monkeypatch):
    """Give steps memory full of what nobody may read, and see what they write beside it."""
    # NaN shows in sums, and is lost in comparisons.
    fill = itertools.cycle((torch.nan, 1e30))
    pieces = []

    def carve(sizes, count, dtype, device):
        value = next(fill) if dtype.is_floating_point else 2**30
        made = {}
        for name, size in sizes.items():
            whole = torch.full((size * count + 2 * _AROUND,), value, dtype=dtype, device=device)
            pieces.append((name, whole, whole[0].clone()))
            made[name] = whole[_AROUND : _AROUND + size * count]
        return made

    monkeypatch.setattr(sizes, "carve", carve)
    yield
    for name, whole, value in pieces:
        beside = torch.cat((whole[:_AROUND], whole[-_AROUND:]))
        assert torch.equal(beside.isnan(), value.isnan().expand_as(beside)), name
        assert value.isnan() or (beside == value).all(), name
