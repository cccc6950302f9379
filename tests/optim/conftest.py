"""What the tests of optimizers are given."""

import pytest

from ._helpers import (
    read_as_from_a_gpu,
)


@pytest.fixture(params=["read", "undone"])
def each_device(request, monkeypatch):
    """Steps as on a CPU, which reads the flag, and as on a GPU, which undoes the step."""
    if request.param == "undone":
        read_as_from_a_gpu(monkeypatch)
