"""The benchmarks of steps in radians, at a small size."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam
from tests._benchmarks import load

problems = load("problems")
radians = load("radians")
stalls = load("stalls")
preconditioning = load("preconditioning")
load("methods")
defaults = load("defaults")


def test_the_table_of_angles(capsys):
    radians.main(["--smoke"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "angle 0.5" in lines[0]
    assert all(0 < float(cell) < 10 for cell in lines[2].strip("| ").split(" | ")[1:])


def test_the_tables_of_preconditioned_gradients(capsys):
    preconditioning.main(["--smoke"])
    *losses, head, _, steps = (
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line
    )
    assert [row[0] for row in losses[2:]] == list(problems.PROBLEMS)
    assert all(0 < float(end) < 2 for row in losses[2:] for end in row[1:])
    assert len(steps) == len(head) == 1 + len(preconditioning.WAYS)
    assert all(0 < float(count) <= 20 for count in steps[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_preconditioner_levels_the_rows_of_a_gradient(dtype):
    torch.manual_seed(0)
    none, half, _, _ = map(preconditioning.Preconditioner, preconditioning.WAYS)
    x = torch.eye(40, 6, dtype=dtype)
    for _ in range(200):
        grad = torch.randn(2, 40, 6, dtype=dtype) * torch.logspace(0, -1, 6)
        levelled = half(x, grad)
    assert torch.equal(none(x, grad), grad)
    spread = levelled.abs().square().mean(-2).sqrt()
    # What is added to the eigenvalues leaves the smallest behind.
    assert (spread.amax(-1) / spread.amin(-1) < 4).all()


def test_only_of_the_generator_a_preconditioner_leaves_a_normal_gradient_alone():
    torch.manual_seed(0)
    x = problems.rotation(torch.Generator().manual_seed(0), 6, torch.complex64)
    symmetric = torch.randn(6, 6, dtype=torch.complex64)
    normal = (symmetric + symmetric.mH) @ x
    for way in preconditioning.WAYS:
        preconditioned = preconditioning.Preconditioner(way)
        # It would commute with a covariance of this gradient alone.
        preconditioned(x[None], torch.randn_like(x)[None])
        followed = preconditioned(x[None], normal[None])[0]
        tangent = (followed @ x.mH - x @ followed.mH).abs().max()
        assert (tangent < 1e-4) == (not way.startswith("of the gradient"))


def test_quantization_rounds_to_sixteen_levels_and_goes_straight_through():
    x = torch.randn(5, 40, requires_grad=True)
    rounded = problems._in_4_bits(x, -1)
    assert all(len(row.detach().unique()) <= 15 for row in rounded)
    assert (rounded - x).abs().max() <= x.abs().max() / 14 + 1e-6
    (grad,) = torch.autograd.grad(rounded.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


def test_a_rotation_helps_quantization():
    problem = problems.quantized(torch.Generator().manual_seed(0), 32)
    assert problem.suboptimality(problem.start) < 0.7 * problem.suboptimality(torch.eye(32))


def test_the_table_of_stalls(capsys):
    stalls.main(["--smoke"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(stalls.METHODS)
    assert all(" of 2" in line for line in lines[2:])


def test_the_table_of_defaults(tmp_path, capsys):
    names = ["regression, batch 8", "random unitary"]
    arguments = ["--smoke", "--output", str(tmp_path), "--problems", *names]
    runs = defaults.main(arguments)
    text = capsys.readouterr().out
    assert (tmp_path / "defaults.md").read_text() in text
    assert (tmp_path / "defaults.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 < end < 10 for run in runs for end in run.ends)
    assert {run.method for run in runs} == {one.variant for one in defaults.methods()}
    before = (tmp_path / "defaults.jsonl").read_bytes()
    assert defaults.main(arguments) == runs
    assert (tmp_path / "defaults.jsonl").read_bytes() == before


def test_the_table_of_defaults_of_chosen_methods_and_rates(tmp_path, capsys):
    arguments = ["--smoke", "--output", str(tmp_path), "--problems", "Brockett"]
    runs = defaults.main([*arguments, "--methods", "angle, k = 4", "--rates", "0.1", "0.75"])
    asked = [("constant", 0.1), ("constant", 0.75), ("decaying", 0.1), ("decaying", 0.75)]
    assert [(run.schedule, run.lr) for run in runs] == asked
    assert {run.method for run in runs} == {"Nesterov, angle, k = 4"}
    of_decaying = [run.mean for run in runs[2:]]
    ratios = [f"{mean / min(of_decaying):.2g}" for mean in of_decaying]
    assert f"| Nesterov, angle, k = 4 | {' | '.join(ratios)} |" in capsys.readouterr().out


def test_the_default_of_adam_has_no_false_fixed_points(monkeypatch):
    monkeypatch.setitem(stalls.METHODS, "default", (ProjUNNRiemannianAdam, 0.03, {}))
    assert stalls.stalled("default", 4, 1, steps=2000, starts=24) == 0


def test_one_second_moment_for_a_matrix_has_no_false_fixed_points():
    """Scaling entry by entry before the projection gives directions that need not descend."""
    assert stalls.stalled("Adam, mean", 4, 1, steps=2000, starts=24) == 0
    assert stalls.stalled("Adam, elementwise", 4, 1, steps=2000, starts=24) > 0
