"""Let a test of backends choose how many threads there are."""

import pytest
import torch


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
