"""The update benchmark measures methods that take the steps they are named by."""

import json
import math
import shutil

import pytest
import torch

from geoopt_projunn import backends
from geoopt_projunn.linalg.rows import IN_TORCH, Products
from geoopt_projunn.sketches import SKETCHES
from tests._asserts import assert_unitary
from tests._benchmarks import load

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
(COPY,) = (method for method in METHODS if method.name == update_methods.COPY)
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


def result(method="SGD, k = 1", n=32, times=(1.0,), passes=None, of_pass=(1.0,), threads=1):
    return update_report.Result(
        method, "ours", n, threads, list(times), passes, list(of_pass), bytes_of_pass=4 * n**2
    )


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


@pytest.mark.parametrize(
    "method", [m for m in STEPPED if m.rectangular], ids=lambda method: method.name
)
def test_methods_of_rectangles_take_them(method):
    problem = update_problem.draw(64, p=16)
    assert_unitary(problem.x)
    assert problem.n == 64
    subject = built(method, problem)
    for _ in range(3):
        subject.step()
    end = subject.weight()
    assert end.shape == (64, 16)
    assert torch.linalg.matrix_norm(end.mT @ end - torch.eye(16)) < 2e-5
    assert along(problem.d, end) < along(problem.d, problem.x) - 1e-4


@pytest.mark.parametrize(("method", "batch", "dtype"), OTHERS)
def test_methods_of_batches_and_complex_matrices_do_so_as_well(method, batch, dtype):
    problem = update_problem.draw(32, batch, dtype)
    subject = built(method, problem)
    for _ in range(3):
        subject.step()
    end = subject.weight()
    assert torch.linalg.matrix_norm(end.mH @ end - torch.eye(32)).max() < 2e-5
    assert along(problem.d, end) < along(problem.d, problem.x) - 1e-4


def test_a_copy_takes_the_gradient_to_memory_of_its_own():
    problem = update_problem.draw(64)
    before = problem.x.clone()
    subject = COPY.build(problem)
    assert torch.equal(subject.weight(), problem.x)
    subject.step()
    assert torch.equal(subject.weight(), problem.d)
    assert torch.equal(problem.x, before)
    assert COPY.order == 2


class Passes(Products):
    """Counts those over one matrix and those over another."""

    def __init__(self, x, d):
        self.matrices, self.counts = (x, d), [0, 0]

    def counted(self, x):
        (index,) = (i for i, matrix in enumerate(self.matrices) if matrix is x)
        self.counts[index] += 1

    def times(self, rows, x):
        self.counted(x)
        return super().times(rows, x)

    def times_adjoint(self, rows, x):
        self.counted(x)
        return super().times_adjoint(rows, x)

    def both_sides(self, left, right, x):
        self.counted(x)
        return IN_TORCH.both_sides(left, right, x)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("sketch", "passes", "over_x_and_d"),
    [("tangent", update_methods.TANGENT, [4, 2]), ("lsi", update_methods.LSI, [1, 2])],
)
def test_a_sketch_passes_as_often_as_its_floor_takes_for_granted(sketch, passes, over_x_and_d, k):
    problem = update_problem.draw(32, (1,))
    counter = Passes(problem.x, problem.d)
    SKETCHES[sketch](problem.x, problem.d, k, torch.zeros(1, dtype=torch.int64), counter)
    assert counter.counts == over_x_and_d
    assert sum(counter.counts) + update_methods.TURN == passes


def test_what_a_rule_keeps_is_passed_over_as_well():
    """Both products make the direction from it, and then it is read and written, from gradients."""
    passes = {method.name: method.passes for method in METHODS}
    for name, buffers, more in (
        ("SGD, k = 16", 0, 0),
        ("SGD, momentum, k = 1", 1, 1),
        ("Adam, k = 1", 2, 1),
        ("Adam, scalar, k = 1", 1, 2),
    ):
        assert passes[name] == update_methods.TANGENT + (2 + 2) * buffers + more


def test_every_method_is_measured_and_reported(tmp_path, capsys):
    report = update.main(["--smoke", "--output", str(tmp_path), "--threads", "1"])
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
            assert (result["over_floor"] is None) == (method.passes is None)
            assert result["over_ours"] > 0
            assert (result["method"] != update_methods.OURS) or result["over_ours"] == 1
    rectangular = [method.name for method in METHODS if method.rectangular]
    assert [r["method"] for r in written["tall"]] == 2 * rectangular
    assert "of an n × n/4 matrix, 1 thread(s)" in text
    for result in written["tall"]:
        assert result["over_ours"] > 0
        assert (result["method"] != update_methods.OURS) or result["over_ours"] == 1
    assert set(written["small"]) == set(update_extras.KINDS)
    sgd, adam = (written["peaks"][name] for name in update_extras.KINDS)
    # What the kernels take for a few rows torch does not count.
    assert 0 <= sgd <= adam < 1
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
        update_methods.COPY,
        "SGD, cayley, k = 1",
        "torch orthogonal, cayley",
    }
    assert not report.small


def test_a_method_too_slow_for_the_budget_is_left_out_and_named(capsys):
    options = update.parse(["--budget", "1"])
    slow = next(m for m in METHODS if m.name == "torch orthogonal, cayley")
    ours = next(m for m in METHODS if m.name == update_methods.OURS)
    earlier = [
        result(slow.name, 16, [50.0]),
        result(ours.name, 16, [50.0]),
    ]
    options.rounds = 1
    results = list(update.run_size(32, [COPY, slow, ours], earlier, options))
    assert [r.method for r in results] == [COPY.name, ours.name]
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
    assert all(part[0] is COPY for part in parts)
    assert max(map(len, parts)) == 4
    assert [m for part in parts for m in part[1:]] == [m for m in METHODS if m is not COPY]


def test_a_method_is_compared_with_the_copies_of_its_own_rounds(monkeypatch):
    """Each copy on this clock takes longer than the one before, and a step ten times as long."""
    copies = []

    def timed(function, calls=1):
        if function() == "copy":
            copies.append(3e-3 * (len(copies) + 1))
            return copies[-1]
        return 10 * copies[-1]

    def method(name, passes):
        subject = update_methods.Update(lambda: name)
        return update_methods.Method(name, "ours", lambda _: subject, passes, 2)

    monkeypatch.setattr(update, "timed", timed)
    monkeypatch.setattr(update, "ALIVE_BYTES", 1)  # one at a time
    chosen = [method("one", 9), method("copy", 3), method("two", 6)]
    options = update.parse(["--rounds", "5", "--budget", "100"])
    copy, one, two = update.run_size(32, chosen, [], options)
    assert [copy.method, one.method, two.method] == ["copy", "one", "two"]
    assert copy.over_floor == 1
    assert one.over_floor == pytest.approx(10 * 3 / 9)
    assert two.over_floor == pytest.approx(10 * 3 / 6)
    assert len(copies) == 2 * 7  # two to warm up


def test_ratios_are_taken_within_the_rounds():
    one = result(times=[2.0, 40.0, 6.0], passes=2, of_pass=[0.25, 2.5, 0.5])
    other = result(times=[1.0, 10.0, 3.0])
    assert one.over(other) == 2
    assert one.ms == 6
    assert one.over_floor == 6
    assert one.floor == 1
    assert one.bandwidth == pytest.approx(2 * 4 * 32**2 / 6e-3)
    assert other.over_floor is other.floor is other.bandwidth is None


def test_a_copy_counts_what_a_processor_fetches_before_it_writes():
    assert [update_methods.passes_of_copy(device) for device in ("cpu", "cuda")] == [3, 2]


def test_growth_is_told_where_both_sizes_were_measured():
    machine = {"threads": [1], "dtype": "", "batch": "", "caches": "", "device": "", "versions": {}}
    report = update_report.Report(machine)
    for n, ms in ((1024, 1.0), (8192, 64.0)):
        report.results.append(result(n=n, times=[ms]))
    assert "64.0 times, as n to the power 2.00" in report.text()


def test_tables_are_of_one_number_of_threads_each(tmp_path):
    arguments = ["--smoke", "--threads", "1,2", "--output", str(tmp_path), "--methods", "floor"]
    report = update.main(arguments)
    for threads in (1, 2):
        rows = [(r.method, r.n) for r in report.of(threads)]
        names = update_methods.MATMUL, update_methods.COPY, update_methods.OURS
        assert sorted(rows) == sorted((name, n) for name in names for n in (32, 48))
    fast, slow = (result(times=[ms], passes=2, threads=t) for ms, t in ((3.0, 2), (5.0, 1)))
    report.results = [slow, fast]
    one, two = report.text().split("Milliseconds of one update, ")[1:]
    assert one.startswith("1 thread(s)")
    assert "| SGD, k = 1 | 2.50 |" in one
    assert "| SGD, k = 1 | 1.50 |" in two


@pytest.mark.parametrize("text", ["0", "2,2"])
def test_numbers_of_threads_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        update.parse(["--threads", text])
    assert f"must be at least 1 and differ, got {text}" in capsys.readouterr().err


def test_too_small_a_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        update.parse(["--sizes", "16,64"])
    assert "at least 32, twice the largest rank, got 16" in capsys.readouterr().err


@pytest.mark.gpu
def test_every_method_is_measured_on_a_gpu(tmp_path):
    report = update.main(["--smoke", "--device", "cuda", "--output", str(tmp_path)])
    assert f"{update_methods.OURS}, in a CUDA graph" in {r.method for r in report.results}
    assert all(math.isfinite(r.ms) for r in report.results)
