"""The benchmarks measure what they say, at a small size."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FULL_BATCH = [
    "Procrustes, large residual",
    "Procrustes, consistent",
    "Brockett",
    "joint diagonalization",
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


problems = load("problems")
learning = load("learning")
rnn = load("rnn")


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_a_problem_starts_on_the_manifold_above_its_minimum(name):
    problem = problems.PROBLEMS[name](12)
    x = problem.start
    assert torch.linalg.matrix_norm(x.mH @ x - torch.eye(12)) < 1e-5
    assert problem.suboptimality(x) > 1e-3


@pytest.mark.parametrize("name", FULL_BATCH)
def test_the_gradient_is_that_of_the_loss(name):
    problem = problems.PROBLEMS[name](12)
    x = problem.start
    direction = torch.randn(12, 12)
    h = 1e-2
    slope = (
        problem.suboptimality(x + h * direction) - problem.suboptimality(x - h * direction)
    ) / (2 * h)
    expected = float((problem.gradient(x) * direction).sum())
    assert slope == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("name", ["regression", "random unitary"])
def test_the_mean_gradient_of_mini_batches_descends(name):
    problem = problems.PROBLEMS[name](12)
    mean = sum(problem.gradient(problem.start) for _ in range(200)) / 200
    step = 1e-3 / float(mean.abs().max())
    assert problem.suboptimality(problem.start - step * mean) < problem.suboptimality(problem.start)


def test_a_second_call_runs_nothing_again_and_repeats_the_table(tmp_path, capsys):
    arguments = ["--smoke", "--problems", "Procrustes, consistent", "--output", str(tmp_path)]
    first = learning.main(arguments)
    lines = (tmp_path / "learning.jsonl").read_text()
    second = learning.main(arguments)
    assert second == first
    assert (tmp_path / "learning.jsonl").read_text() == lines
    table = (tmp_path / "learning.md").read_text()
    assert table in capsys.readouterr().out
    for method in learning.methods():
        assert (f"| {method.name} |" in table) == (method.family == "sgd")
    assert (tmp_path / "learning_sgd.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_method_is_that_of_its_best_learning_rate():
    def one(lr, seed, *hits):
        return learning.Run("p", "m", lr, seed, list(hits), [1.0], 0.0)

    runs = [one(0.1, 0, 10, None, None), one(0.1, 1, 30, None, None)]
    runs += [one(0.3, 0, 40, 50, None), one(0.3, 1, 40, 70, None)]
    assert learning.best(runs, 0) == (20, 0.1)
    assert learning.best(runs, 1) == (60, 0.3)
    assert learning.best(runs, 2)[0] == float("inf")


def test_every_recurrent_layer_takes_its_turn(tmp_path, capsys):
    results = rnn.main(["--smoke", "--output", str(tmp_path)])
    known, absent = rnn.available()
    assert {*known, *absent} == set(rnn.METHODS)
    assert [result.method for result in results] == known
    table = (tmp_path / "rnn.md").read_text()
    assert table in capsys.readouterr().out
    for result in results:
        assert result.step > result.optimizer > 0
        assert result.memory > 0
        assert f"| {result.method} |" in table
    assert all(name in table for name in absent)
    assert len(json.loads((tmp_path / "rnn.json").read_text())) == len(known)


def test_the_memory_of_a_step_is_that_of_its_sequences():
    size = rnn.Size(32, length=50, batch=16, inputs=4)
    states = 4 * 50 * 16 * 32 / 2**20  # MiB of one sequence of states
    # The states, and their gradient.
    ours = rnn.measure_memory("OrthogonalRNN, modrelu, k = 1", size)
    assert 2 * states < ours < 2.5 * states
    assert ours < 1.1 * rnn.measure_memory(rnn.BASELINE, size)
