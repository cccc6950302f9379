"""The example of matrices in parts learns, and goes on with another number of processes."""

import math

import pytest
from torch import distributed

from tests.examples._load import load


def start(folder, *more):
    report = load("sharded").main(["--smoke", "--output", folder, *more])
    del report["peak MiB"]
    return report


def test_the_example_learns_and_resumes_with_another_number_of_processes(world, tmp_path, capsys):
    reports = world.run(start, str(tmp_path))
    for report in reports:
        assert report["processes"] == 4
        assert report["first step"] == 0
        assert report["losses"] == reports[0]["losses"]
        assert 0 < report["bytes exchanged"] < 20 * 8 * 96 * 4
        assert report["error"] < 1e-4
    # Parameters, gradients and momentum, and two counters each.
    assert sum(report["bytes here"] for report in reports) == 3 * 4 * (96**2 + 96) + 4 * 12
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        try:
            alone = start(str(tmp_path))
            other = start(str(tmp_path), "--seed", "1")
        finally:
            distributed.destroy_process_group()
    assert alone["processes"] == 1
    assert alone["first step"] == 8
    assert alone["bytes exchanged"] == 0
    assert other["first step"] == 0  # another seed is another problem
    losses = reports[0]["losses"] + alone["losses"]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.5 * losses[0]
    assert "process 0" in capsys.readouterr().out
