"""Both ways in which torch can convert a module's parameters."""

import pytest
import torch


@pytest.fixture(params=[False, True], ids=["set data", "swap"])
def swap(request):
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)
