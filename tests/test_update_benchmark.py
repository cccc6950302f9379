"""The update benchmark measures methods that take the steps they are named by."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from geoopt_projunn import backends
from tests._asserts import assert_unitary
from tests._benchmarks import BENCHMARKS, load

memory = load("memory")
timing = load("timing")
update_problem = load("update_problem")
update_methods = load("update_methods")
update_peers = load("update_peers")
update_report = load("update_report")
update_figure = load("update_figure")
update_extras = load("update_extras")
update = load("update")

METHODS = [*update_methods.methods("cpu"), *update_peers.peers()]
OPTIONAL = {"pogo-torch", "cdopt"}
STEPPED = [method for method in METHODS if method.kind != "floor"]
OTHERS = [
    pytest.param(method, batch, dtype, id=f"{method.name}, {dtype}")
    for batch, dtype in (((3,), torch.float32), ((2,), torch.complex64))
    for method in STEPPED
    if method.batched and (method.complex or not dtype.is_complex)
]


def built(method, problem):
    try:
        return method.build(problem)
    except ModuleNotFoundError:
        assert method.package in OPTIONAL
        pytest.skip(f"{method.package} is not installed")


def along(d, w):
    """Return the linear loss whose gradient is d, summed over a batch."""
    return (d.conj() * w).sum().real


def test_a_time_is_that_of_one_call():
    calls = []
    assert 0 < timing.timed(lambda: calls.append(sum(range(10**5))), 3) < 1
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("n", [2, 7, 32])
def test_the_start_is_unitary_and_the_gradient_has_length_one(n, batch, dtype):
    problem = update_problem.draw(n, batch, dtype)
    assert problem.x.shape == problem.d.shape == (*batch, n, n)
    assert problem.x.dtype == problem.d.dtype == dtype
    assert_unitary(problem.x)
    torch.testing.assert_close(torch.linalg.matrix_norm(problem.d), torch.ones(batch))


@pytest.mark.parametrize("method", STEPPED, ids=lambda method: method.name)
def test_a_method_starts_at_the_point_stays_orthogonal_and_descends(method):
    torch.manual_seed(0)
    problem = update_problem.draw(40)
    subject = built(method, problem)
    start = subject.weight().clone()
    torch.testing.assert_close(start, problem.x, atol=1e-5, rtol=0)
    for _ in range(5):
        subject.step()
    end = subject.weight()
    error = torch.linalg.matrix_norm(end.mT @ end - torch.eye(40))
    assert error < 2e-5
    assert torch.linalg.matrix_norm(end - start) > 1e-2
    assert along(problem.d, end) < along(problem.d, start) - 1e-4


@pytest.mark.parametrize(("method", "batch", "dtype"), OTHERS)
def test_methods_of_batches_and_complex_matrices_do_so_as_well(method, batch, dtype):
    problem = update_problem.draw(32, batch, dtype)
    subject = built(method, problem)
    for _ in range(3):
        subject.step()
    end = subject.weight()
    assert torch.linalg.matrix_norm(end.mH @ end - torch.eye(32)).max() < 2e-5
    assert along(problem.d, end) < along(problem.d, problem.x) - 1e-4


@pytest.mark.parametrize("k", update_methods.RANKS)
def test_a_streaming_floor_moves_the_matrix_by_its_rank_alone(k):
    problem = update_problem.draw(64)
    before = problem.x.clone()
    (floor,) = (m for m in METHODS if m.name == update_methods.FLOOR.format(k))
    floor.build(problem).step()
    assert torch.equal(problem.x, before)
    assert floor.order == 2


def test_every_method_is_measured_and_reported(tmp_path, capsys):
    report = update.main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    text = (tmp_path / "update.md").read_text()
    assert text in printed
    assert (tmp_path / "update.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "update.json").read_text())
    assert len(written["results"]) == len(report.results)
    for method in METHODS:
        found = [r for r in written["results"] if r["method"] == method.name]
        if f"pip install {method.package}" in printed:
            assert method.package in OPTIONAL
            assert not found
            continue
        assert [r["n"] for r in found] == [32, 48]
        assert f"| {method.name} | " in text
        for result in found:
            assert len(result["times"]) == 2
            assert all(time > 0 for time in result["times"])
            assert result["over_floor"] > 0
            assert result["over_ours"] > 0
            assert (result["method"] != update_methods.OURS) or result["over_ours"] == 1
    assert written["copy_bandwidth"] > 0
    assert set(written["small"]) == set(update_extras.KINDS)
    sgd, adam = (written["peaks"][name] for name in update_extras.KINDS)
    assert 0 < sgd <= adam
    assert (adam < 0.1) == ("cpu" in backends.available())
    assert torch.__version__ in text


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled_methods_take_the_steps_of_the_others():
    problem = update_problem.draw(40, (), torch.float32)
    others = {method.name: method for method in METHODS}
    compiled = [m for m in update_methods.methods("cpu", compile=True) if "compiled" in m.name]
    assert len(compiled) == len(update_methods.RANKS) + 2
    pair = [compiled[0], others[compiled[0].name.removesuffix(", compiled")]]
    updates = [method.build(problem) for method in pair]
    for update in updates:
        update.step()
    assert (updates[0].weight() - updates[1].weight()).abs().max() < 1e-6
    assert not torch.equal(updates[0].weight(), problem.x)
    torch._dynamo.reset()


def test_some_methods_alone_are_measured_beside_what_they_are_compared_with(tmp_path):
    arguments = ["--smoke", "--dtype", "complex64", "--batch", "3", "--output", str(tmp_path)]
    report = update.main([*arguments, "--methods", "cayley"])
    names = {r.method for r in report.results}
    assert names == {
        update_methods.OURS,
        *(update_methods.FLOOR.format(k) for k in update_methods.RANKS),
        "SGD, cayley, k = 1",
        "torch orthogonal, cayley",
    }
    assert not report.small


def test_a_method_too_slow_for_the_budget_is_left_out_and_named(capsys):
    options = update.parse(["--budget", "1"])
    slow = next(m for m in METHODS if m.name == "torch orthogonal, cayley")
    ours = next(m for m in METHODS if m.name == update_methods.OURS)
    earlier = [
        update_report.Result(slow.name, "peer", 1, 16, [50.0], 1),
        update_report.Result(ours.name, "ours", 1, 16, [50.0], 1),
    ]
    options.rounds = 1
    results = list(update.run_size(32, [slow, ours], earlier, options))
    assert [r.method for r in results] == [ours.name]
    assert f"{slow.name}: left out at n = 32" in capsys.readouterr().out


def test_a_method_out_of_budget_takes_no_further_turns():
    calls = []
    subject = update_methods.Update(lambda: calls.append(1))
    seconds = update.measure({"one": subject}, rounds=4, budget=0.0, label="")
    assert len(seconds["one"]) == 1


def test_caches_are_emptied_before_each_measured_update(monkeypatch):
    events = []
    monkeypatch.setattr(update, "empty_caches", lambda: events.append("empty"))
    step = update_methods.Update(lambda: events.append("step"))
    update.measure({"one": step}, 3, 1.0, "", cold=True)
    assert events == ["step"] * 2 + ["empty", "step"] * 3
    events.clear()
    update.measure({"one": step}, 3, 1.0, "")
    assert "empty" not in events
    timing.empty_caches()


def test_large_matrices_are_measured_a_few_at_a_time(monkeypatch):
    problem = update_problem.draw(64)
    monkeypatch.setattr(update, "ALIVE_BYTES", 3 * 6 * 64 * 64 * 4)
    parts = list(update.crews(METHODS, problem))
    assert max(map(len, parts)) == 3
    assert [m for part in parts for m in part] == METHODS


def test_ratios_are_taken_within_the_rounds():
    one, other = (
        update_report.Result(name, "ours", 1, 32, times, 6000)
        for name, times in (("a", [2.0, 40.0, 6.0]), ("b", [1.0, 10.0, 3.0]))
    )
    assert one.over(other) == 2
    assert one.ms == 6
    assert other.bandwidth == pytest.approx(6000 / 3e-3)


def test_growth_is_told_where_both_sizes_were_measured():
    report = update_report.Report({"backend": "cpu"}, 1e9)
    for n, ms in ((1024, 1.0), (8192, 64.0)):
        report.results.append(update_report.Result(update_methods.OURS, "ours", 1, n, [ms], 1))
    (line,) = report.beside()
    assert "64.0 times, as n to the power 2.00" in line


def test_the_share_of_the_copy_bandwidth_is_reported_of_a_gpu():
    machine = {
        "backend": "cuda",
        "device": "x",
        "threads": 1,
        "dtype": "float32",
        "batch": "",
        "caches": "",
    }
    report = update_report.Report({**machine, "versions": {}}, 2e9)
    report.results.append(update_report.Result(update_methods.OURS, "ours", 1, 32, [1.0], 10**6))
    assert f"| {update_methods.OURS} | 0.50 |" in report.text()


def test_too_small_a_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        update.parse(["--sizes", "16,64"])
    assert "at least 32, twice the largest rank, got 16" in capsys.readouterr().err


def test_a_floor_is_below_what_it_bounds_in_flops():
    """A product of rows is 2kn² flops: the floor of rank k has four of them, and a 4kn² update."""
    n, k = 64, 4
    problem = update_problem.draw(n)
    (floor,) = (m for m in METHODS if m.name == update_methods.FLOOR.format(k))
    subject = floor.build(problem)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        subject.step()
    # Of the forms that it chooses from, the counter knows only these products.
    assert counter.get_total_flops() <= 12 * k * n**2


@pytest.mark.gpu
def test_every_method_is_measured_on_a_gpu(tmp_path):
    report = update.main(["--smoke", "--device", "cuda", "--output", str(tmp_path)])
    assert f"{update_methods.OURS}, in a CUDA graph" in {r.method for r in report.results}
    assert all(math.isfinite(r.ms) for r in report.results)


def run_script(*arguments, **variables):
    root = BENCHMARKS.parent
    return subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_gpu_script_runs_to_its_end_on_a_cpu(tmp_path):
    done = run_script("--dry-run", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())
    assert list(parts) == ["tests", "table", "batch-64", "batch-256"]
    assert all(part["exit"] == 0 for part in parts.values())
    for name in ("table", "batch-64", "batch-256"):
        written = json.loads((tmp_path / name / "update.json").read_text())
        assert written["results"]
    assert written["machine"]["dtype"] == "complex64"


def test_the_limits_of_the_gpu_script_stay_below_ten_minutes():
    lines = (BENCHMARKS / "gpu.sh").read_text().splitlines()
    limits = [int(line.split()[2]) for line in lines if line.startswith("part ")]
    assert len(limits) == 4
    assert sum(limits) < 580


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_script_refuses_a_machine_without_one(tmp_path):
    done = run_script(str(tmp_path))
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
