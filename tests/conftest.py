"""One thread and one seed: every test draws the same numbers, alone or in any order."""

import gc
import warnings

import pytest
import torch

# geoopt scripts two functions as it is imported, which torch warns about.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script")
    import geoopt  # noqa: F401

    from geoopt_projunn import backends


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Leave modules and tens of thousands of tests out of what each collection looks through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=["cpu", "reference"])
def each_way(request):
    """Steps by the compiled kernels, which record no gradients, and by torch's own operations."""
    if request.param not in backends.available():
        pytest.skip("the kernels were not built")
    if request.param == "cpu":
        # The kernels where they serve: tests that record gradients get torch's operations.
        yield
    else:
        with backends.use(request.param):
            yield


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
