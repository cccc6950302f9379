"""The Triton kernels without a GPU: how many a step launches, and that a GPU could run them."""

import pytest
import torch

from geoopt_projunn.backends.triton import support
from tests._modes import Recorder

pytest.importorskip("triton", reason="there is no Triton")
if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from ._ahead import RULES, key, launches, spec, stack_bytes

# All kernels, rules, sketches and retractions, in all dtypes; the first of each that is new.
STEPS = {
    "k = 1": ("gradient", spec(1), (1, 512, 512), torch.float32),
    "LSI": ("adam", spec(4, "lsi", "polar", 2), (1, 512, 512), torch.float32),
    "complex": ("amsgrad", spec(4, normalize="spectral"), (3, 96, 64), torch.complex64),
    "scalar": ("scalar amsgrad", spec(2, "tangent", "cayley"), (2, 65, 33), torch.complex128),
    "float64": ("nesterov", spec(3, sweep=0, normalize="angle"), (1, 64, 64), torch.float64),
    "k = 16": ("momentum", spec(16), (1, 512, 512), torch.float32),
}


@pytest.mark.parametrize("step", STEPS)
def test_kernels_compile_for_two_generations_of_gpus_and_spill_nothing(monkeypatch, step):
    rule, how, shape, dtype = STEPS[step]
    compiled = set()
    for launch in launches(monkeypatch, rule, how, shape, dtype):
        if key(launch) not in compiled:
            compiled.add(key(launch))
            for capability in (80, 90):
                spilt = stack_bytes(launch, capability)
                assert spilt == 0 or how.k > 4, (launch.kernel.__name__, capability)


@pytest.mark.parametrize("n", [2, 64, 4096, 65536])
@pytest.mark.parametrize("k", [1, 2, 16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_step_is_a_dozen_launches_whatever_its_size(monkeypatch, dtype, rule, k, n):
    how = spec(min(k, n // 2))
    found = launches(monkeypatch, rule, how, (2, n, n), dtype)
    assert len(found) == (13 if "scalar" in rule else 12)
    for launch in found:
        # What CUDA allows.
        assert all(size < 2**16 for size in launch.grid[1:])


@pytest.mark.parametrize("k", [1, 16])
def test_a_step_allocates_little_and_does_nothing_else(monkeypatch, k):
    """What a graph that is captured must not have: copies, fills, reads."""
    n = 4096
    with Recorder() as recorder:
        launches(monkeypatch, "adam", spec(k), (1, n, n), torch.float32)
    own = {"empty", "empty_like"}  # those of the test among them
    assert recorder.operations <= own | {"split", "split_with_sizes", "detach", "view", "alias"}
    of_memory = [size for size in recorder.created if size != n * n]
    assert sum(of_memory) < 200 * k * n
