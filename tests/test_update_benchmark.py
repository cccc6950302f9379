"""The update benchmark measures every method and reports it."""

import json
import math
from importlib.metadata import version

import pytest

from geoopt_projunn import backends
from tests._benchmarks import load
from tests._update import (
    METHODS,
    OPTIONAL,
    result,
    update,
    update_extras,
    update_methods,
    update_report,
)


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
        for row in found:
            assert len(row["times"]) == 2
            assert all(time > 0 for time in row["times"])
            assert (row["over_floor"] is None) == (method.passes is None)
            assert row["over_ours"] > 0
            assert (row["method"] != update_methods.OURS) or row["over_ours"] == 1
    rectangular = [method.name for method in METHODS if method.rectangular]
    assert [r["method"] for r in written["tall"]] == 2 * rectangular
    assert "of an n × n/4 matrix, 1 thread(s)" in text
    for name in (update_methods.OURS, update_methods.DEFAULT):
        assert text.count(f"Others over `{name}`") == 2
    for row in written["tall"]:
        assert row["over_ours"] > 0
        assert (row["method"] != update_methods.OURS) or row["over_ours"] == 1
    assert set(written["small"]) == set(update_extras.KINDS)
    sgd, adam = (written["peaks"][name] for name in update_extras.KINDS)
    # What the kernels take for a few rows torch does not count.
    assert 0 <= sgd <= adam < 1
    assert (adam < 0.1) == ("cpu" in backends.available())
    assert f"torch {version('torch')}," in text


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


def test_ratios_are_taken_within_the_rounds():
    one = result(times=[2.0, 40.0, 6.0], passes=2, of_pass=[0.25, 2.5, 0.5])
    other = result(times=[1.0, 10.0, 3.0])
    assert one.over(other) == 2
    assert one.ms == 6
    assert one.over_floor == 6
    assert one.floor == 1
    assert one.bandwidth == pytest.approx(2 * 4 * 32**2 / 6e-3)
    assert other.over_floor is other.floor is other.bandwidth is None


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


@pytest.mark.parametrize("batch", ["0", "-1"])
def test_a_batch_holds_matrices(batch, capsys):
    with pytest.raises(SystemExit):
        update.parse(["--smoke", f"--batch={batch}"])
    assert f"--batch must be at least 1, got {batch}; leave it out" in capsys.readouterr().err


def test_too_small_a_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        update.parse(["--sizes", "16,64"])
    assert "at least 32, twice the largest rank, got 16" in capsys.readouterr().err


@pytest.mark.gpu
def test_every_method_is_measured_on_a_gpu(tmp_path):
    report = update.main(["--smoke", "--device", "cuda", "--output", str(tmp_path)])
    assert f"{update_methods.OURS}, in a CUDA graph" in {r.method for r in report.results}
    assert all(math.isfinite(r.ms) for r in report.results)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
def test_the_table_of_vectors(capsys):
    load("vectors").main(["--smoke"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("| torch's operations |")
    assert [row.split(" | ")[0] for row in rows] == ["| 32, 1", "| 32, 8", "| 32, 16"]
    assert all(float(cell) > 0 for row in rows for cell in row.strip("| ").split(" | ")[1:])
