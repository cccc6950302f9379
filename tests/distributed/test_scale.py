"""The benchmark of many processes counts what the formula says, and real processes exchange it."""

import pytest

from tests._able import gather_without_values, skip_unless
from tests._benchmarks import load

scale = load("scale")


@pytest.mark.parametrize(("n", "processes", "k"), [(4096, 4, 8), (262144, 1024, 32), (513, 64, 2)])
def test_a_simulated_step_exchanges_what_the_formula_says(n, processes, k):
    skip_unless(gather_without_values)
    assert scale.simulated(n, processes, k) == scale.formula(n, processes, k)


def test_one_process_exchanges_nothing():
    assert not scale.simulated(64, 1, 2)


def count(n, k):
    return dict(load("scale").counted(n, 4, k, device="cpu"))


def test_real_processes_exchange_it(world):
    assert world.run(count, 42, 3) == [dict(scale.formula(42, 4, 3))] * 4


def test_bytes_grow_with_n_and_those_of_whole_matrices_with_its_square():
    for n, ratio in ((4096, 7.75), (8192, 15.5)):
        ours = scale.sent(scale.formula(n, 64, 26), 64)
        assert scale.whole(n, 64, 4) / ours == pytest.approx(ratio, rel=0.02)


def test_the_benchmark_draws_its_table(tmp_path, monkeypatch, capsys):
    skip_unless(gather_without_values)
    # Real processes: see above.
    monkeypatch.setattr(scale, "measured", lambda n, processes, k: [scale.formula(n, processes, k)])
    table = scale.main(["--smoke", "--output", str(tmp_path)])
    assert [(row["n"], row["processes"]) for row in table] == [
        (4096, 1),
        (4096, 4),
        (8192, 1),
        (8192, 4),
    ]
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert "| 8192 | 4 |" in capsys.readouterr().out
