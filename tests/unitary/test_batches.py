"""A batch is its members one by one."""

import pytest
import torch

from tests._asserts import assert_same_to_rounding

from ._cases import BATCH, N
from ._methods import BROADCAST


@pytest.mark.parametrize("method", BROADCAST)
def test_a_batch_is_its_members_one_by_one(case, method):
    x, y = case.point(*BATCH), case.point(*BATCH)
    u, v = torch.randn(2, *BATCH, N, N, dtype=case.dtype)
    call = BROADCAST[method]
    together = call(case.manifold, x, y, u, v)
    alone = [
        call(case.manifold, *(t[i, j] for t in (x, y, u, v))) for i in range(2) for j in range(3)
    ]
    expected = torch.stack(alone).view(*BATCH, *alone[0].shape)
    assert together.is_contiguous()
    assert_same_to_rounding(together, expected, ulps=200)


@pytest.mark.parametrize("method", sorted(set(BROADCAST) - {"projx", "inner", "norm"}))
def test_batch_dimensions_broadcast(case, method):
    x, y = case.point(2, 1), case.point(3)
    u, v = torch.randn(3, N, N, dtype=case.dtype), torch.randn(2, 1, N, N, dtype=case.dtype)
    call = BROADCAST[method]
    full = [t.expand(*BATCH, N, N).contiguous() for t in (x, y, u, v)]
    result = call(case.manifold, x, y, u, v)
    assert result.is_contiguous()
    assert_same_to_rounding(result, call(case.manifold, *full), ulps=50)
