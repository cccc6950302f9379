"""One thread and one seed: every test draws the same numbers, alone or in any order."""

import warnings

import pytest
import torch

# geoopt scripts two functions as it is imported, which torch warns about.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
    import geoopt  # noqa: F401

    from geoopt_projunn.linalg import extension


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=["kernels", "torch"])
def each_way(request):
    """Steps by the compiled kernels, which record no gradients, and by torch's own operations."""
    if request.param == "kernels":
        if not extension.BUILT:
            pytest.skip("the extension is not built")
        yield
    else:
        with extension.disabled():
            yield


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
