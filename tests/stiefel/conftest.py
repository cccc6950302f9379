"""Let a test run for every kind of manifold."""

import pytest

from ._cases import CASES


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param
