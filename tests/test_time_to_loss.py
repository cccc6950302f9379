"""The time-to-loss benchmark reaches its targets, keeps its runs, and divides rightly."""

from itertools import pairwise

import pytest
import torch

from tests._benchmarks import load

problems = load("problems")
methods = load("methods")
tasks = load("time_to_loss_tasks")
running = load("time_to_loss_run")
report = load("time_to_loss_report")
timing = load("time_to_loss")

METHODS = [method.name for method in tasks.methods(16)]


def smoke(folder, *more):
    return ["--smoke", "--output", str(folder), *map(str, more)]


def run(method, seconds, outcome=running.REACHED, problem="p", lr=0.3, steps=10):
    return running.Run(
        problem=problem,
        n=16,
        method=method,
        lr=lr,
        seed=0,
        outcome=outcome,
        steps=steps,
        step_seconds=seconds / steps,
        wall_seconds=2 * seconds,
        gradient_seconds=1e-3,
        budget=seconds,
        check_every=10,
        curve=[1.0, 5e-3 if outcome == running.REACHED else 0.5],
    )


def rows(text):
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()[2:] if "|" in line]
    return {row[2]: row for row in cells}


def test_the_population_loss_is_the_mean_over_inputs_of_the_covariance():
    n = 12
    problem = problems.regression(torch.Generator().manual_seed(3), n, 0.0, 4)
    again = torch.Generator().manual_seed(3)
    target, axes = (problems.rotation(again, n).double() for _ in range(2))
    covariance = axes * torch.logspace(0, -2, n, dtype=torch.float64) @ axes.mT
    difference = problem.start.double() - target
    expected = 0.5 * torch.trace(difference @ covariance @ difference.mT)
    assert problem.suboptimality(problem.start) == pytest.approx(float(expected), rel=1e-5)


def test_mini_batch_gradients_average_to_that_of_the_population_loss():
    problem = problems.regression(torch.Generator().manual_seed(0), 8, 0.0, 32)
    x = problem.start
    mean = sum(problem.gradient(x) for _ in range(3000)) / 3000
    for seed in range(3):
        direction = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        slope = (problem.suboptimality(x + direction) - problem.suboptimality(x - direction)) / 2
        size = float(mean.norm() * direction.norm())
        assert float((mean * direction).sum()) == pytest.approx(slope, abs=0.02 * size)


@pytest.mark.parametrize("problem", tasks.PROBLEMS)
def test_every_method_reaches_the_target_of_every_problem(problem, tmp_path):
    # Full-rank momentum follows the first of these only.
    arguments = smoke(tmp_path, "--problems", problem, "--rates", 0.03, 0.1)
    names = METHODS
    if problem == "regression, batch n":
        # It differs from "regression" in the size of the batches alone.
        names = [name for name in METHODS if name.startswith("k = ") or "Euclidean" in name]
        arguments += ["--methods", *names]
    (methods,) = report.grouped(timing.main(arguments)).values()
    assert set(methods) == set(names)
    for one in map(report.best, methods.values()):
        assert one.outcome == running.REACHED
        assert one.curve[0] == 1
        assert one.curve[-1] < running.TARGET <= min(one.curve[:-1])
        assert one.steps == one.check_every * (len(one.curve) - 1)


def test_a_second_call_runs_what_is_missing_and_repeats_the_table(tmp_path, capsys):
    arguments = smoke(tmp_path, "--rates", 0.3, 1, "--methods", "k =", "Euclidean")
    first = timing.main(arguments)
    table = (tmp_path / "time_to_loss.md").read_text()
    assert table in capsys.readouterr().out
    assert (tmp_path / "time_to_loss.png").read_bytes().startswith(b"\x89PNG")
    assert timing.main(arguments) == first
    assert (tmp_path / "time_to_loss.md").read_text() == table

    missing = next(tmp_path.glob("ours-k-1_*.json"))
    missing.unlink()
    kept = {path: path.read_text() for path in tmp_path.glob("*_seed0.json")}
    second = timing.main(arguments)
    assert missing.exists()
    assert {path: path.read_text() for path in kept} == kept
    assert len(second) == len(first)


def test_only_a_run_that_spent_its_budget_is_tried_with_a_larger_one(tmp_path):
    arguments = smoke(tmp_path, "--rates", 0.3, "--methods", "ours: k = 1")
    (stopped,) = timing.main([*arguments, "--budget", "1e-9"])
    assert (stopped.outcome, stopped.steps) == (running.OVER_BUDGET, 1)
    assert timing.main([*arguments, "--budget", "1e-10"]) == [stopped]
    (arrived,) = timing.main([*arguments])
    assert arrived.outcome == running.REACHED
    assert timing.main([*arguments, "--budget", "20"]) == [arrived]


def test_a_method_is_not_trained_for_longer_than_its_best_rate_took(tmp_path):
    arguments = smoke(tmp_path, "--methods", "ours: k = 1")
    (quick,) = timing.main([*arguments, "--rates", "0.3"])
    _, slow = sorted(timing.main([*arguments, "--rates", "1e-4"]), key=lambda one: -one.lr)
    assert slow.outcome == running.OVERTAKEN
    assert slow.steps == quick.steps


def test_every_run_sees_the_same_batches():
    method = next(tasks.methods(16))
    three = [tasks.Task(tasks.MINI_BATCH, 16, 4, 0, method, lr) for lr in (0.3, 1, 0.3)]
    first, other, again = (
        running.run(task, 10, 30, 10, running.tqdm(disable=True)) for task in three
    )
    assert first.curve == again.curve != other.curve


def test_a_learning_rate_moves_the_peers_as_far_as_is_said():
    generator = torch.Generator().manual_seed(0)
    x = problems.rotation(generator, 16)[None]
    d = torch.randn(1, 16, 16, generator=generator)
    velocity = (x @ d.mT @ x - d) / 2
    speeds = {}
    for method in tasks.methods(16):
        weight, optimizer = method.make(x, 1e-3)
        point = weight()
        point.backward(d)
        optimizer.step()
        moved = (weight().detach() - x) / 1e-3
        speeds[method.variant] = float((moved * velocity).sum() / velocity.square().sum())
    assert speeds["geoopt EuclideanStiefel"] == pytest.approx(1, rel=1e-2)
    assert speeds["geoopt CanonicalStiefel"] == pytest.approx(4, rel=1e-2)
    assert speeds["torch orthogonal, cayley"] == pytest.approx(2, rel=1e-2)
    assert speeds.get("POGO", 1) == pytest.approx(1, rel=1e-2)
    assert 0 < speeds["k = 1"] < speeds["k = 4"] < 1


def test_the_likeliest_rates_come_first():
    assert timing.from_the_middle([0.1, 0.3, 1, 3, 10])[0] == 1
    assert set(timing.from_the_middle([0.1, 0.3, 1, 3, 10])[-2:]) == {0.1, 10}


def test_ratios_are_to_the_fastest_peer_of_the_same_problem():
    runs = [
        run("ours: k = 1", 2.0, lr=0.1),
        run("ours: k = 1", 4.0, lr=0.3, steps=20),
        run("peer: a", 8.0, lr=0.1),
        run("peer: a", 9.0, outcome=running.OVERTAKEN),
        run("peer: b", 16.0),
        run("peer: c", 1.0, problem="q"),
    ]
    of_p = rows(report.table([one for one in runs if one.problem == "p"]))
    assert list(of_p) == ["ours: k = 1", "peer: a", "peer: b"]
    assert [row[3] for row in of_p.values()] == ["2", "8", "16"]
    assert [row[4] for row in of_p.values()] == ["4×", "1×", "0.5×"]
    assert [row[5] for row in of_p.values()] == ["10 (0.1†)", "10 (0.1†)", "10 (0.3†)"]
    assert "† at an edge" in report.table(runs)
    assert rows(report.table(runs))["peer: c"][4] == "1×"


def test_a_run_over_its_budget_bounds_the_ratio():
    ours, slow = run("ours: k = 1", 2.0), run("peer: a", 50.0, outcome=running.OVER_BUDGET)
    found = rows(report.table([ours, slow]))
    assert found["ours: k = 1"][4] == "> 25×"
    assert found["peer: a"][3:6] == ["> 50", "–", "> 10"]
    slow_ours = run("ours: k = 1", 50.0, outcome=running.OVER_BUDGET)
    found = rows(report.table([slow_ours, run("peer: a", 5.0)]))
    assert found["ours: k = 1"][4] == "< 0.1×"
    lost = run("peer: b", 1.0, outcome=running.DIVERGED)
    assert rows(report.table([ours, lost]))["ours: k = 1"][4] == "–"


def test_a_method_in_radians_ends_its_steps_as_planned():
    method = next(one for one in tasks.methods(16) if one.variant.startswith(tasks.RADIANS))
    assert tasks.rates(method, [0.3]) == tasks.PLANS
    weight, optimizer = method.make(torch.eye(16)[None], 3.0)
    seen = []
    for _ in range(4):
        weight().grad = torch.randn(1, 16, 16)
        optimizer.step()
        seen.append(weight().detach().clone())
    moved = [float((after - before).abs().max()) for before, after in pairwise(seen)]
    assert moved[2] < 1e-6 < min(moved[:2])
