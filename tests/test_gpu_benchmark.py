"""The benchmark of a GPU runs unattended: tried on a CPU, and each way in which a part may end."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
import torch

from tests._benchmarks import BENCHMARKS, load
from tests._triton import needs_triton

for name in (
    *("timing", "memory", "update_problem", "update_methods", "update_peers", "update_report"),
    *("update_figure", "update_extras", "update", "gpu_timing", "gpu_report", "gpu_steps"),
    *("gpu_layers", "gpu_tests", "gpu_variants"),
):
    load(name)
gpu = load("gpu")
report = sys.modules["gpu_report"]

MOST_CHARACTERS = 10_000


def run_script(*arguments, **variables):
    return subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def errors_of(part):
    """Return the errors of a part, but for that of an import where Triton is not installed."""
    return {k: v for k, v in part["found"].items() if "Error" in str(v) and k != "triton"}


def test_the_script_runs_to_its_end_on_a_cpu(tmp_path):
    done = run_script("--dry-run", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.iterdir())) <= 8
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    for name, part in parts.items():
        assert part["ended"] == "done", name
        assert part["found"]
        assert not errors_of(part)
    assert {"eager", "floor"} <= set(parts["times"]["found"]["n=32 SGD k=1"])
    assert parts["launches"]["found"]["n=32 SGD k=1"]["launches"] > 0
    assert parts["tests"]["found"]["tests/optim/test_gpu.py"]["skipped"] > 0
    text = (tmp_path / "summary.txt").read_text()
    assert done.stdout.endswith(text + "\n")
    assert len(text) < MOST_CHARACTERS
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    with tarfile.open(tmp_path / "logs.tar.gz") as logs:
        assert {f"logs/{name}.log" for name in gpu.PARTS} <= set(logs.getnames())


def test_without_triton_steps_are_measured_and_wheels_are_found(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['triton'] = None")
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "matplotlib-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("matplotlib/__init__.py", "__version__ = 'of a wheel'")
    parts = "--parts", "environment", "compiling", "batches"
    variables = {"PYTHONPATH": str(tmp_path), "WHEELS": str(wheels)}
    done = run_script("--dry-run", str(out), *parts, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    of_parts = json.loads((out / "gpu.json").read_text())["parts"]
    assert not {name: errors for name, part in of_parts.items() if (errors := errors_of(part))}
    found = of_parts["environment"]["found"]
    assert found["matplotlib"] == "of a wheel"
    assert found["torch"] == torch.__version__
    assert isinstance(found["launches in C++"], bool)
    # That one draws nothing.
    assert not (out / "gpu.png").exists()
    assert "matplotlib: of a wheel" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_script_refuses_a_machine_without_a_gpu(tmp_path):
    done = run_script(str(tmp_path))
    assert done.returncode == 2
    assert "--dry-run" in done.stderr


def test_the_script_says_what_wheels_are_missing(tmp_path):
    (tmp_path / "geoopt.py").write_text("raise ImportError('no geoopt here')")
    done = run_script("--dry-run", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "no geoopt here" in done.stderr
    assert "set WHEELS to a folder" in done.stderr


def cases_then(end):
    def cases(device):
        yield "first", lambda: 1
        yield "failing", lambda: 1 / 0
        yield "last", end

    return gpu.Part(60, cases)


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        (lambda: 2, "done"),
        (lambda: os._exit(7), "died with 7"),
        (lambda: time.sleep(60), "ended after 4 s"),
    ],
    ids=["by itself", "by a crash", "by its limit"],
)
def test_what_a_part_found_is_kept_however_it_ends(end, ended, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "one", cases_then(end))
    part = gpu.run("one", "cpu", 4, tmp_path, "fork")
    assert part["ended"] == ended
    found = {"first": 1, "failing": "ZeroDivisionError: division by zero"}
    assert part["found"] == ({**found, "last": 2} if ended == "done" else found)


@pytest.mark.parametrize("end", [lambda: os._exit(7), lambda: time.sleep(60)])
def test_what_a_part_has_started_ends_with_it(end, tmp_path, monkeypatch):
    ours, theirs = os.pipe()

    def last():
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[theirs])
        end()

    monkeypatch.setitem(gpu.PARTS, "one", cases_then(last))
    begun = time.monotonic()
    gpu.run("one", "cpu", 6, tmp_path, "fork")
    os.close(theirs)
    # As long as one lives that could write, this waits.
    assert os.read(ours, 1) == b""
    assert time.monotonic() - begun < 30
    os.close(ours)


def test_parts_for_which_there_is_no_time_are_left_out_and_named(tmp_path, capsys):
    arguments = ["--device", "cpu", "--output", str(tmp_path), "--seconds", "0"]
    parts = gpu.main(arguments)["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert {part["ended"] for part in parts.values()} == {"left out: no time"}
    assert (tmp_path / "summary.txt").read_text() in capsys.readouterr().out


def test_the_whole_takes_seven_minutes():
    assert gpu.TOTAL == 7 * 60
    assert sum(part.seconds for part in gpu.PARTS.values()) >= gpu.TOTAL


def test_a_long_summary_is_cut_and_says_how_all_parts_ended():
    found = {f"case {number}": {"eager": 1 / 3, "other": [1.5, "x" * 900]} for number in range(40)}
    parts = {
        name: {"ended": f"{name} ended", "seconds": 1.0, "found": {**found, "fine": report.OK}}
        for name in gpu.PARTS
    }
    text = report.summary({"device": "cuda", "parts": parts})
    assert len(text) < MOST_CHARACTERS
    assert "case 0: eager 0.333, other [1.5, xxx" in text
    assert all(f"{name} ended" in text for name in gpu.PARTS)
    parts["waiting"]["found"] = {"a": report.OK, "b": report.OK, "c": "RuntimeError: waits"}
    short = report.summary({"device": "cuda", "parts": {"waiting": parts["waiting"]}})
    assert short.endswith("c: RuntimeError: waits\nok: 2 cases")


@needs_triton
def test_the_script_for_tuning_runs_on_a_cpu(tmp_path):
    path, names = tmp_path / "found.json", ["as it is", "k = 8 by entry"]
    command = [sys.executable, str(BENCHMARKS / "gpu_tuning.py"), "--device", "cpu"]
    command += ["--output", str(path), "--variants", *names]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    found = json.loads(path.read_text())
    assert list(found) == names
    assert found["as it is"].keys() == {"n=32 k=2", "errors n=32 k=2"}
    assert found["k = 8 by entry"]["n=32 k=2"] > 0


def tuning_that_ends(*arguments, **variables):
    command = [sys.executable, str(BENCHMARKS / "gpu_tuning.py"), *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_script_for_tuning_refuses_a_machine_without_a_gpu():
    assert "--device cpu" in tuning_that_ends()


def test_the_script_for_tuning_ends_if_one_of_its_processes_dies(tmp_path):
    dies = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv: os._exit(7)"
    (tmp_path / "sitecustomize.py").write_text(dies)
    said = tuning_that_ends("--device", "cpu", PYTHONPATH=f"{tmp_path}:{BENCHMARKS.parent}")
    assert "terminated abruptly" in said


@needs_triton
def test_what_is_tuned_is_there():
    for places in load("gpu_tuning").VARIANTS.values():
        for place in places:
            module, constant = place.split()
            owner = importlib.import_module(f"geoopt_projunn.backends.triton.{module}")
            assert hasattr(owner, constant), place
