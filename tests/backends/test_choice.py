"""Who is chosen, and what is said where a choice cannot serve."""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

import geoopt
import pytest
import torch
from torch.func import vmap

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends import choose, products_for
from geoopt_projunn.backends.cpu import kernels
from geoopt_projunn.backends.extensions import lack_of
from tests._modes import Recorder

built = pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
X = torch.eye(4)


HEADERS = Path(sysconfig.get_path("include"), "Python.h")


# Everything works without them: only here would their loss be seen.
@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++") or not HEADERS.exists(),
    reason="needs a compiler",
)
def test_what_is_in_cpp_is_built_where_they_can_be():
    assert "cpu" in backends.available(), "install the package: `pip install -e .` builds them"
    assert kernels.kernels.USES_THREADS
    assert importlib.util.find_spec("geoopt_projunn.backends.triton._launches") is not None


@built
def test_without_threads_of_their_own_they_serve_one(monkeypatch, threads):
    class WithoutThreads:
        USES_THREADS = False

    monkeypatch.setattr(kernels, "kernels", WithoutThreads)
    with torch.no_grad():
        threads(1)
        assert choose(X).name == "cpu"
        threads(2)
        assert choose(X).name == "reference"


@pytest.fixture
def without_kernels(monkeypatch):
    kernels.warn_of_lack.cache_clear()
    monkeypatch.setattr(kernels, "LACK", "they were not built")
    yield
    kernels.warn_of_lack.cache_clear()


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_one_warning_says_what_that_costs():
    x = geoopt.ManifoldParameter(torch.eye(4), manifold=LowRankUnitary())
    optimizer = ProjUNNRiemannianSGD([x], lr=0.1)
    x.grad = torch.randn(4, 4)
    what = "up to nine times as long .* missing: .* not built"
    with pytest.warns(UserWarning, match=what) as record:
        optimizer.step()
    assert record[0].filename == __file__
    optimizer.step()  # a second one would be an error here
    assert backends.available()[-1] == "reference"
    assert "cpu" not in backends.available()


def test_why_parts_in_cpp_are_missing():
    error = ImportError("no such symbol")
    assert lack_of("geoopt_projunn.backends.nothing", error).startswith("no C++ compiler")
    assert lack_of("geoopt_projunn.backends.cpu", error).endswith("load them (no such symbol)")


def test_the_reference_is_always_available():
    assert backends.available()[-1] == "reference"


@built
def test_the_kernels_serve_plain_steps_on_a_cpu():
    with torch.no_grad():
        assert choose(X).name == "cpu"
        with backends.use("reference"):
            assert choose(X).name == "reference"
            with backends.use("cpu"):
                assert choose(X).name == "cpu"
            assert choose(X).name == "reference"
        assert choose(X).name == "cpu"


def negated():
    return torch.randn(4, 4, dtype=torch.complex64).conj().imag


REASONS = [
    (lambda: torch.empty(4, 4, device="meta"), "the tensors are on meta"),
    (lambda: X.bfloat16(), "do not support torch.bfloat16"),
    (negated, "negated lazily"),
]


@built
@pytest.mark.parametrize(("build", "reason"), REASONS)
def test_what_they_cannot_serve_is_left_to_the_reference_or_refused_by_name(build, reason):
    with torch.no_grad():
        assert choose(build()).name == "reference"
        with (
            backends.use("cpu"),
            pytest.raises(RuntimeError, match=f"backend 'cpu' .* cannot serve: .*{reason}"),
        ):
            choose(build())


@built
def test_nor_do_they_serve_where_derivatives_or_batches_would_be_lost():
    with torch.enable_grad():
        assert choose(X).name == "reference"
        with backends.use("cpu"), pytest.raises(RuntimeError, match="gradients are recorded"):
            choose(X)
    with torch.no_grad():
        names = []
        vmap(lambda x: (names.append(choose(x).name), x)[1])(torch.randn(2, 4, 4))
        assert names == ["reference"]
        with torch.autograd.forward_ad.dual_level():
            assert choose(X).name == "reference"


def test_an_unknown_name_is_refused():
    with (
        pytest.raises(ValueError, match=r"`name` must be one of .*'reference'.*, got 'gpu'"),
        backends.use("gpu"),
    ):
        pass


def test_the_choice_before_comes_back_after_an_exception():
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    with torch.no_grad():
        assert choose(X).name == backends.available()[0]


@built
def test_a_step_that_a_backend_cannot_serve_leaves_all_as_it_was():
    """Of several parameters one is on no device that the kernels serve."""
    served = geoopt.ManifoldParameter(LowRankUnitary().random(4, 4), manifold=LowRankUnitary())
    other = geoopt.ManifoldParameter(torch.empty(4, 4, device="meta"), manifold=LowRankUnitary())
    plain = torch.nn.Parameter(torch.ones(3))
    params = [plain, served, other]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1, momentum=0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    before = served.detach().clone()
    with backends.use("cpu"), pytest.raises(RuntimeError, match="cannot serve: the tensors are on"):
        optimizer.step()
    assert (plain == 1).all()
    assert torch.equal(served, before)
    assert not optimizer.state


@built
def test_contexts_need_not_end_in_turn():
    one, other = backends.use("reference"), backends.use("cpu")
    with torch.no_grad():
        one.__enter__()
        other.__enter__()
        assert choose(X).name == "cpu"
        one.__exit__(None, None, None)
        assert choose(X).name == "cpu"
        other.__exit__(None, None, None)
        assert choose(X).name == backends.available()[0]
        with backends.use("reference"):
            assert choose(X).name == "reference"


@built
def test_outside_of_steps_no_choice_is_refused():
    w, x = (torch.randn(2, 300, 300, requires_grad=True) for _ in range(2))
    with torch.enable_grad(), backends.use("cpu"):
        assert torch.equal(products_for(w).times(x[:, :2], w), x[:, :2] @ w)


@built
def test_a_step_is_one_operator():
    p = geoopt.ManifoldParameter(LowRankUnitary().random(24, 24), manifold=LowRankUnitary())
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.randn_like(p)
    optimizer.step()
    with Recorder() as recorder:
        optimizer.step()
    assert "step_" in recorder.operations
    assert not recorder.operations & {"bmm", "mm", "baddbmm"}


@pytest.mark.usefixtures("without_kernels")
def test_use_says_why_a_backend_is_not_one_of_this_machine():
    with pytest.raises(ValueError, match=r"got \['cpu'\]"), backends.use(["cpu"]):
        pass
    words = r"the backends of this machine, got 'cpu': the C\+\+ kernels are missing: they were not"
    with pytest.raises(ValueError, match=words), backends.use("cpu"):
        pass
