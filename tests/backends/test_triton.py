"""Where the Triton kernels serve, and what is said where they do not."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from geoopt_projunn import backends
from geoopt_projunn.backends import choose
from geoopt_projunn.backends.triton import support
from tests._triton import needs_triton, run_interpreted


@needs_triton
@pytest.mark.skipif(support.INTERPRETED, reason="it is interpreted here")
def test_interpreted_kernels_do_what_the_reference_does():
    run_interpreted(str(Path(__file__).with_name("interpreted")))


def test_importing_the_package_imports_no_kernels():
    """Nor Triton, unless torch's compiler has, which imports it where it is installed."""
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import geoopt_projunn\n"
        "print([name for name in sys.modules if 'triton.kernels' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class OnAGpu(torch.Tensor):
    """What says that it is on a GPU."""

    is_cuda = True
    is_cpu = False
    device = torch.device("cuda", 0)


def forget():
    """Let all be asked again that is asked once of each device."""
    for asked in (support.lack, support._room_to_overlap, support.warn_of_lack):
        asked.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Let torch tell of one GPU; return a function that sets its compute capability."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(support, "version", lambda: support.OLDEST_TRITON)
    # Triton need not be installed.
    monkeypatch.setattr(support, "_USED", ())

    def of(capability):
        forget()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return torch.empty(4, 4).as_subclass(OnAGpu)

    yield of
    forget()


@pytest.mark.usefixtures("without_gradients")
def test_it_serves_tensors_on_a_gpu(gpu):
    x = gpu((8, 0))
    assert choose(x).name == "triton"
    assert "triton" in backends.available()
    with backends.use("reference"):
        assert choose(x).name == "reference"


@pytest.mark.skipif(support.INTERPRETED, reason="interpreted kernels run one after another")
@pytest.mark.parametrize(
    ("capability", "driver", "most"),
    [
        ((8, 9), 13_000, 0),
        ((9, 0), 13_000, 66),
        ((9, 0), 12_030, 66),
        ((9, 0), 12_020, 0),
        ((12, 0), 13_000, 0),
    ],
)
def test_small_kernels_overlap_on_gpus_that_can(gpu, monkeypatch, capability, driver, most):
    device = gpu(capability).device
    major, minor = capability
    found = SimpleNamespace(major=major, minor=minor, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    assert [support.overlaps(device, n) for n in (1, 66, 67)] == [most > 0, most > 0, False]
    assert not support.overlaps(torch.device("cpu"), 1)


@pytest.mark.skipif(
    (support.version() or (0,)) < support.OLDEST_TRITON, reason="Triton is not installed, or older"
)
def test_this_triton_has_what_is_used_of_it():
    """Or tests of the kernels would be skipped."""
    assert support.lack_of_triton() is None


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("name", ["json:no.name", "json.decoder:no_name", "no_module:name"])
def test_so_is_one_for_which_triton_has_lost_what_is_used_of_it(gpu, monkeypatch, name):
    x = gpu((9, 0))
    monkeypatch.setattr(support, "_USED", ("json:loads", name))
    with pytest.warns(UserWarning, match=f"cannot be used: this Triton has no `{name}`; a newer"):
        assert choose(x).name == "reference"


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize(
    ("version", "hip", "reason"),
    [
        ((3, 5), None, r"the compute capability of cuda:0 is 7\.5, and the kernels need 8\.0"),
        (None, None, "Triton is not installed"),
        ((3, 4), None, r"Triton is 3\.4, and the kernels need 3\.5 or later, .* torch 2\.9"),
        ((3, 5), "6.4", "the kernels are for GPUs of NVIDIA"),
    ],
)
def test_a_gpu_that_it_cannot_serve_is_left_to_the_reference_with_one_warning(
    gpu, monkeypatch, version, hip, reason
):
    x = gpu((7, 5))
    monkeypatch.setattr(support, "version", lambda: version)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.warns(UserWarning, match=f"Steps on cuda:0 .* cannot be used: {reason}"):
        assert choose(x).name == "reference"
    assert choose(x).name == "reference"  # and no second one, which would be an error here
    if not support.INTERPRETED:
        assert "triton" not in backends.available()
        with pytest.raises(ValueError, match="`name` must be one of"), backends.use("triton"):
            pass


@pytest.mark.usefixtures("without_gradients")
def test_forced_it_refuses_by_name_what_it_cannot_serve(gpu):
    x = gpu((9, 0))
    with backends.use("triton"):
        assert choose(x).name == "triton"
        for wrong, reason in (
            (torch.empty(4, 4, device="meta"), "the tensors are on meta"),
            (
                torch.empty(4, 4, dtype=torch.bfloat16).as_subclass(OnAGpu),
                "do not support torch.bf",
            ),
        ):
            with pytest.raises(RuntimeError, match=f"'triton' .* cannot serve: .*{reason}"):
                choose(wrong)
        with torch.enable_grad(), pytest.raises(RuntimeError, match="gradients are recorded"):
            choose(x)


@pytest.mark.parametrize(
    ("devices", "version", "why"),
    [
        (0, support.OLDEST_TRITON, "there is no GPU"),
        (0, None, "Triton is not installed"),
        (1, support.OLDEST_TRITON, r"the compute capability of cuda:0 is 7\.5"),
    ],
)
@pytest.mark.skipif(support.INTERPRETED, reason="it is available here")
def test_use_says_why_it_is_not_available(monkeypatch, gpu, devices, version, why):
    gpu((7, 5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(support, "version", lambda: version)
    with pytest.raises(ValueError, match=f"got 'triton': {why}"), backends.use("triton"):
        pass
