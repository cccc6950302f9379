"""What the experiments on memory share: networks, runs that go on, rows and pictures."""

import math

import pytest
import torch

from ._load import PNG, load, read

MEMORY = ["copy_memory", "adding_problem"]


def parsed(*arguments):
    parser = load("_memory_options").parser("", "", hidden=16, batch=8, iterations=0, every=2)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("name", MEMORY)
def test_a_memory_experiment_trains_every_network(name, tmp_path, capsys):
    arguments = ["--smoke", "--output", str(tmp_path), "--k", "1", "full", "--layers", "2"]
    rows = load(name).main([*arguments, "--networks", *load("_networks").NETWORKS])
    labels = {row["network"] for row in rows}
    assert labels == {
        "orthogonal, k = 1",
        "orthogonal, full rank",
        "unitary, k = 1",
        "unitary, full rank",
        "orthogonal GRU, k = 1",
        "orthogonal GRU, full rank",
        "orthogonal, frozen",
        "LSTM",
        "GRU",
    }
    assert [row["iteration"] for row in rows] == [2, 4] * len(labels)
    assert len(read(tmp_path / f"{name}.csv")) == len(rows)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels)
    for row in rows:
        assert math.isfinite(row["loss"])
        assert (row["network"] in ("LSTM", "GRU")) == (row["orthogonality_error"] is None)
        assert (row["orthogonality_error"] or 0) < 1e-5


def test_an_experiment_draws_every_length_and_seed(tmp_path):
    copy_memory = load("copy_memory")
    sizes = ["--hidden", "16", "--batch", "8", "--iterations", "1"]
    several = ["--T", "10", "12", "--seeds", "0", "1"]
    rows = copy_memory.main([*sizes, *several, "--output", str(tmp_path)])
    runs = [(row["task"], row["seed"]) for row in rows]
    assert runs == [("T10", 0), ("T10", 1), ("T12", 0), ("T12", 1)]
    assert len({row["loss"] for row in rows}) == 4


@pytest.mark.parametrize(("k", "layers"), [("1", 1), ("4", 3)])
def test_an_angle_is_how_far_every_recurrent_matrix_turns(k, layers):
    options = parsed("--k", k, "--angle", "0.1", "--lr", "1e-3", "--layers", str(layers))
    [chosen] = load("_networks").networks(options, 10, 9, last=False)
    model, optimizer = chosen.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    weights = [getattr(model.layer, f"weight_hh_l{i}").detach() for i in range(layers)]
    assert len(weights) == len(model.recurrent())
    for i, weight in enumerate(weights):
        turn = weight @ before[f"layer.weight_hh_l{i}"].mT
        angles = torch.linalg.eigvals(turn.double()).angle()
        assert float(angles.square().sum() / (2 * int(k))) ** 0.5 == pytest.approx(0.1, rel=1e-3)
    # All other weights by the learning rate: Adam's first step has entries of this size.
    moved = model.readout.weight.detach() - before["readout.weight"]
    assert float(moved.abs().max()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("network", ["orthogonal", "orthogonal gru", "lstm"])
def test_a_run_that_was_cut_off_continues_bit_for_bit(network, tmp_path, capsys):
    copy_memory = load("copy_memory")
    symbols = copy_memory.SYMBOLS
    options = parsed("--networks", network)
    [chosen] = load("_networks").networks(options, symbols + 2, symbols + 1, last=False)
    task, training = copy_memory.copying(10, 8), load("_training")

    def losses(folder, *stops):
        for stop in stops:
            rows = list(training.train(task, chosen, 0, stop, every=2, folder=tmp_path / folder))
        return [row["loss"] for row in rows]

    assert losses("cut", 4, 8) == losses("whole", 8)


def test_a_run_with_other_settings_is_refused_before_any_is_trained(tmp_path):
    copy_memory = load("copy_memory")
    arguments = ["--smoke", "--output", str(tmp_path)]
    copy_memory.main(arguments)
    message = (
        r"orthogonal-k-8-0.pt is a run with --lr 0.001 --clip none, not with --lr 0.5 --clip 1.0: "
        r"give its options to continue it, delete it, or choose another --output"
    )
    others = ["--lr", "0.5", "--clip", "1", "--networks", "lstm", "orthogonal"]
    with pytest.raises(SystemExit, match=message):
        copy_memory.main([*arguments, *others])
    assert [path.name for path in tmp_path.glob("*/*/*.pt")] == ["orthogonal-k-8-0.pt"]


def test_settings_in_which_runs_differ_stand_beside_the_networks(tmp_path, capsys):
    copy_memory = load("copy_memory")
    arguments = ["--iterations", "1", "--output", str(tmp_path), "--T"]
    copy_memory.main([*arguments, "5", "--hidden", "16", "--batch", "8"])
    changed = ["--hidden", "8", "--batch", "4", "--second-moment", "mean"]
    capsys.readouterr()
    rows = copy_memory.main([*arguments, "5", "6", *changed, "--networks", "gru"])
    labels = {
        "T5": {
            "orthogonal, k = 8 (--hidden 16 --batch 8 --second-moment elementwise)",
            "GRU (--hidden 8 --batch 4 --second-moment mean)",
        },
        "T6": {"GRU"},
    }
    for task, expected in labels.items():
        assert {row["network"] for row in rows if row["task"] == task} == expected
    printed = capsys.readouterr().out
    assert all(f"{label}  " in printed for expected in labels.values() for label in expected)
    assert {row["network"] for row in read(tmp_path / "copy_memory.csv")} == set.union(
        *labels.values()
    )


def test_an_experiment_redraws_earlier_runs_without_training(tmp_path):
    copy_memory = load("copy_memory")
    arguments = ["--smoke", "--output", str(tmp_path)]
    rows = copy_memory.main([*arguments, "--networks", "lstm"])
    both = copy_memory.main(arguments)
    assert [row["network"] for row in both] == ["LSTM"] * 2 + ["orthogonal, k = 8"] * 2
    assert both[:2] == rows


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "expected a whole number above 0, got '0'"),
        (["--T", "-3"], "expected a whole number above 0, got '-3'"),
        (["--k", "9", "--hidden", "16"], "--k must be at most hidden / 2 = 8"),
        (["--networks", "rnn"], "invalid choice: 'rnn'"),
        (["--batch", "x"], "expected a whole number above 0, got 'x'"),
    ],
)
def test_an_experiment_says_what_is_wrong_with_an_option(name, arguments, message, capsys):
    with pytest.raises(SystemExit):
        load(name).main(arguments)
    assert message in capsys.readouterr().err
