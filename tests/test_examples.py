"""The examples run at a small size and write what they promise."""

import ast
import csv
import importlib.util
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_needed = load("_needed")
_runs = load("_runs")
_reader = load("_reader")
MEMORY = ["copy_memory", "adding_problem"]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", MEMORY)
def test_a_memory_experiment_trains_every_network_on_every_length(name, tmp_path, capsys):
    arguments = ["--smoke", "--output", str(tmp_path), "--k", "1", "full"]
    rows = load(name).main([*arguments, "--networks", *_runs.NETWORKS])
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
    arguments = ["--smoke", "--output", str(tmp_path), "--seeds", "0", "1"]
    rows = copy_memory.main(arguments)
    assert {(row["task"], row["seed"]) for row in rows} == {("T10", 0), ("T10", 1)}
    assert rows[0]["loss"] != rows[2]["loss"]


@pytest.mark.parametrize("k", ["1", "4"])
def test_an_angle_is_how_far_the_recurrent_matrix_turns(k):
    options = _runs.parser("copy_memory", "", hidden=16, batch=8, iterations=0, every=2)
    options = options.parse_args(["--k", k, "--angle", "0.1", "--lr", "1e-3"])
    [chosen] = _runs.networks(options, 10, 9, last=False)
    model, optimizer = chosen.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    turn = model.layer.weight_hh_l0.detach() @ before["layer.weight_hh_l0"].mT
    angles = torch.linalg.eigvals(turn.double()).angle()
    assert float(angles.square().sum() / (2 * int(k))) ** 0.5 == pytest.approx(0.1, rel=1e-3)
    # All other weights by the learning rate: Adam's first step has entries of this size.
    moved = model.readout.weight.detach() - before["readout.weight"]
    assert float(moved.abs().max()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("network", ["orthogonal", "orthogonal gru", "lstm"])
def test_a_run_that_was_cut_off_continues_bit_for_bit(network, tmp_path, capsys):
    copy_memory = load("copy_memory")
    options = _runs.parser("copy_memory", "", hidden=16, batch=8, iterations=0, every=2)
    options = options.parse_args(["--networks", network])
    [chosen] = _runs.networks(options, copy_memory.SYMBOLS + 2, copy_memory.SYMBOLS + 1, last=False)
    task = copy_memory.copying(10, 8)

    def losses(folder, *stops):
        for stop in stops:
            rows = list(_runs.train(task, chosen, 0, stop, every=2, folder=tmp_path / folder))
        return [row["loss"] for row in rows]

    assert losses("cut", 4, 8) == losses("whole", 8)


def test_a_run_with_other_settings_is_not_continued(tmp_path):
    copy_memory = load("copy_memory")
    arguments = ["--smoke", "--output", str(tmp_path)]
    copy_memory.main(arguments)
    with pytest.raises(ValueError, match=r"delete it, or choose another --output"):
        copy_memory.main([*arguments, "--lr", "0.5"])


def test_an_experiment_redraws_earlier_runs_without_training(tmp_path):
    copy_memory = load("copy_memory")
    arguments = ["--smoke", "--output", str(tmp_path)]
    rows = copy_memory.main([*arguments, "--networks", "lstm"])
    both = copy_memory.main(arguments)
    assert [row["network"] for row in both] == ["LSTM"] * 2 + ["orthogonal, k = 8"] * 2
    assert both[:2] == rows


def test_symbols_are_to_be_copied_after_the_marker():
    example = load("copy_memory")
    given, wanted = example.draw_batch(30, 5, 0, 1)
    assert given.shape == (50, 5, 10)
    given = given.argmax(-1)
    assert torch.equal(given[:10], wanted[-10:])
    assert (given[:10] < example.SYMBOLS).all()
    assert (wanted[:-10] == example.BLANK).all()
    marked = (given == example.MARKER).nonzero()[:, 0]
    assert marked.tolist() == [39] * 5
    again, _ = example.draw_batch(30, 5, 0, 1)
    assert torch.equal(again.argmax(-1), given)
    for other in ((0, 2), (1, 1)):
        assert not torch.equal(example.draw_batch(30, 5, *other)[0].argmax(-1), given)


def test_the_trivial_copier_says_blanks_and_guesses():
    example = load("copy_memory")
    task = example.copying(1000, 64)
    _, wanted = task.batch(0, 1)
    logits = torch.full((1020, 64, 9), -1e3)
    logits[:-10, :, example.BLANK] = 0
    logits[-10:, :, : example.SYMBOLS] = 0
    assert task.trivial == pytest.approx(0.0204, abs=5e-5)
    assert task.loss(logits, wanted).item() == pytest.approx(task.trivial, rel=1e-4)


def test_one_number_in_each_half_is_marked_and_their_sum_wanted():
    example = load("adding_problem")
    x, sums = example.draw_batch(31, 4000, 0, 1)
    assert x.shape == (31, 4000, 2)
    numbers, marks = x.unbind(-1)
    assert (marks[:15].sum(0) == 1).all()
    assert (marks[15:].sum(0) == 1).all()
    assert torch.allclose((numbers * marks).sum(0), sums[:, 0])
    error = torch.nn.functional.mse_loss(torch.ones_like(sums), sums)
    assert error.item() == pytest.approx(example.TRIVIAL, rel=0.05)


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


def test_a_sequence_to_add_needs_two_halves(capsys):
    with pytest.raises(SystemExit):
        load("adding_problem").main(["--T", "1"])
    assert "expected at least 2, one number to a half" in capsys.readouterr().err


def test_sequences_to_add_grow_to_their_length_and_count_as_solved_only_there():
    example = load("adding_problem")
    task = example.adding(750, 8, 100, 3)
    lengths = [task.length_at(iteration) for iteration in range(1, 17)]
    assert lengths == [50] * 3 + [100] * 3 + [200] * 3 + [400] * 3 + [750] * 4
    for iteration, length in enumerate(lengths, 1):
        assert task.batch(0, iteration)[0].shape == (length, 8, 2)
    assert example.adding(20, 8, 100, 3).length_at(1) == 20
    assert example.adding(750, 8, 100, 0).length_at(1) == 750
    assert example.adding(750, 8, 100, 3).length_at(10**9) == 750
    history = [
        {"iteration": 10, "loss": 0.001, "length": 400},
        {"iteration": 20, "loss": 0.1, "length": 750},
        {"iteration": 30, "loss": 0.009, "length": 750},
    ]
    assert task.solved_at(history) == 30
    assert task.solved_at(history[:2]) is None


def test_the_rate_falls_with_the_length_and_then_to_nothing():
    task = load("adding_problem").adding(400, 8, 19, 3)
    rates = [task.decay(done) for done in range(19)]
    assert rates[:9] == [1.0] * 9
    assert rates[9] == 0.5
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.25 * (1 + math.cos(0.9 * math.pi)))


def test_an_end_before_the_full_length_is_refused(capsys):
    with pytest.raises(SystemExit):
        load("adding_problem").main(["--T", "750", "--iterations", "1500"])
    assert "--iterations 1500 ends before sequences have 750 numbers" in capsys.readouterr().err


def test_a_warm_up_is_a_whole_number(capsys):
    with pytest.raises(SystemExit):
        load("adding_problem").main(["--warm-up", "-1"])
    assert "expected a whole number or 0, got '-1'" in capsys.readouterr().err


def test_permuted_digits_trains_three_networks_side_by_side(tmp_path, capsys):
    example = load("permuted_digits")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    assert len(read(tmp_path / "permuted_digits.csv")) == len(records) == 2 * len(example.NETWORKS)
    assert (tmp_path / "permuted_digits.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for name in example.NETWORKS:
        assert name in printed
    errors = {record["network"]: record["orthogonality_error"] for record in records}
    assert errors["orthogonal"] < 1e-5 < errors["unconstrained"]


def test_permuted_digits_splits_do_not_overlap():
    train, validation, test = load("permuted_digits").load_splits()
    assert [len(labels) for _, labels in (train, validation, test)] == [1150, 287, 360]
    rows = torch.cat([pixels for pixels, _ in (train, validation, test)], 1).squeeze(-1).mT
    assert len(rows.unique(dim=0)) == len(rows)


def test_permuted_digits_tuning_prints_every_learning_rate(capsys):
    example = load("permuted_digits")
    assert example.main(["--smoke", "--tune"]) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(example.NETWORKS)
    for line in lines:
        assert all(f"'{lr:g}'" in line for lr in example.LEARNING_RATES)


def test_a_constrained_network_starts_like_the_unconstrained_one():
    example = load("permuted_digits")
    states = []
    options = types.SimpleNamespace(hidden=16, k=1, angle=0.01)
    for make in (example.orthogonal, example.unconstrained):
        torch.manual_seed(0)
        states.append(make(options, 1e-3)[0].state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_an_epoch_of_digits_sees_every_digit_once():
    example = load("permuted_digits")
    options = types.SimpleNamespace(dataset="digits", batch=64, epochs=2)
    task, in_epoch = example.reading(options)
    train, _, _ = example.load_splits()
    for epoch in range(2):
        iterations = range(epoch * in_epoch + 1, (epoch + 1) * in_epoch + 1)
        seen = torch.cat([task.batch(0, iteration)[0] for iteration in iterations], 1)
        assert seen.shape == train[0].shape
        assert torch.equal(seen.sum((1, 2)), train[0].sum((1, 2)))
    assert task.decay(0) == task.decay(in_epoch - 1) == 1
    assert task.decay(in_epoch) == pytest.approx(0.5)


def fake_torchvision(monkeypatch, mnist):
    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = mnist
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_mnist_is_read_in_the_order_of_the_papers(tmp_path, monkeypatch):
    class MNIST:
        def __init__(self, root, train, download):
            assert root == str(tmp_path)
            assert not download
            generator = torch.Generator().manual_seed(int(train))
            count = 24 if train else 5
            self.data = torch.randint(256, (count, 28, 28), generator=generator).byte()
            self.targets = torch.arange(count) % 10

    fake_torchvision(monkeypatch, MNIST)
    example = load("permuted_digits")
    train, validation, test = example.load_mnist(tmp_path)
    assert [len(labels) for _, labels in (train, validation, test)] == [22, 2, 5]
    order = np.random.RandomState(92916).permutation(784)
    images = MNIST(str(tmp_path), True, False).data.flatten(1) / 255
    assert torch.allclose(train[0].squeeze(-1).mT, images[:22, order])
    assert torch.allclose(validation[0].squeeze(-1).mT, images[22:, order])
    arguments = ["--smoke", "--dataset", "mnist", "--data", str(tmp_path), "--output"]
    rows = example.main([*arguments, str(tmp_path / "out")])
    assert len(rows) == 2 * len(example.NETWORKS)
    assert (tmp_path / "out" / "permuted_mnist.png").read_bytes().startswith(PNG)
    assert example.main([*arguments, str(tmp_path / "out")]) == rows
    assert example.main([*arguments, str(tmp_path / "out"), "--tune"]) == []


def test_three_methods_learn_a_rotation_from_the_same_start(tmp_path, capsys):
    example = load("learn_a_rotation")
    for seed in range(4):
        torch.manual_seed(seed)
        start, target = example.matrices(6)
        assert torch.linalg.det(start).sign() == torch.linalg.det(target).sign()
        for make in example.METHODS.values():
            assert torch.allclose(make(start)[0].weight, start, atol=1e-5)
    races = example.main(["--smoke", "--output", str(tmp_path)])
    assert set(races) == set(example.METHODS)
    for one in races.values():
        assert one.left[0] == 1
        assert len(one.left) == len(one.seconds) > 1
        assert one.steps > 0
        assert one.error < 1e-3
    printed = capsys.readouterr().out
    assert all(name in printed for name in races)
    assert (tmp_path / "learn_a_rotation.png").read_bytes().startswith(PNG)


def test_mnist_without_torchvision_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(SystemExit, match="torchvision, which is not installed: pip install"):
        load("permuted_digits").main(["--dataset", "mnist"])


def test_mnist_without_files_is_a_clear_error(tmp_path, monkeypatch):
    def missing(root, train, download):
        raise RuntimeError("Dataset not found.")

    fake_torchvision(monkeypatch, missing)
    with pytest.raises(SystemExit, match=r"No MNIST files in .*raw.*--data"):
        load("permuted_digits").main(["--dataset", "mnist", "--data", str(tmp_path)])


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "_needed", _needed)  # it is put back afterwards
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else 1)
    with pytest.raises(
        SystemExit, match=r"need scikit-learn, not .* `pip install '.\[examples\]'`"
    ):
        load("_needed")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_each_example_looks_for_its_packages_first(path):
    imports = [node for node in ast.parse(path.read_text("utf-8")).body if is_import(node)]
    assert "_needed" in names_of(imports[0])


def is_import(node):
    """Return whether this imports a module that does not come with Python."""
    return any(name not in sys.stdlib_module_names for name in names_of(node))


def names_of(node):
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_python_without_its_help_texts_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(SystemExit, match=r"without its help texts .*: install its whole library"):
        _needed.help_texts()


def test_images_that_are_no_file_of_images_are_a_clear_error(tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x_train=np.zeros((4, 8, 8)))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("missing.npz", "text.npz", "other.npz"):
        arguments = ["--smoke", "--data", str(tmp_path / name)]
        with pytest.raises(
            SystemExit, match=rf"--data .*{name} must be .* x_train, .* Leave --data"
        ):
            load("orthogonal_resnet").main(arguments)


def fake_mnist1d(monkeypatch, make):
    data = types.ModuleType("mnist1d.data")
    data.get_dataset_args = lambda: "arguments"
    data.make_dataset = make
    monkeypatch.setitem(sys.modules, "mnist1d", types.ModuleType("mnist1d"))
    monkeypatch.setitem(sys.modules, "mnist1d.data", data)


def make_mnist1d(arguments):
    assert arguments == "arguments"
    rng = np.random.default_rng(0)
    parts = {"": 60, "_test": 20}
    given = {f"x{part}": rng.normal(size=(count, 40)) for part, count in parts.items()}
    return given | {f"y{part}": np.arange(count) % 10 for part, count in parts.items()}


def test_gated_and_other_networks_read_mnist1d(tmp_path, monkeypatch, capsys):
    fake_mnist1d(monkeypatch, make_mnist1d)
    example = load("mnist_1d")
    (x, y), (x_test, _) = example.load()
    assert (x.shape, y.shape, x_test.shape) == ((40, 60, 1), (60,), (40, 20, 1))
    assert torch.equal(
        x[:, 7, 0].double(), torch.tensor(make_mnist1d("arguments")["x"][7]).float().double()
    )
    rows = example.main(["--smoke", "--output", str(tmp_path)])
    assert [row["network"] for row in rows] == [n for n in example.NETWORKS for _ in range(2)]
    assert len(read(tmp_path / "mnist_1d.csv")) == len(rows)
    assert (tmp_path / "mnist_1d.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for row in rows:
        assert row["network"] in printed
        assert (row["orthogonality_error"] is None) == (row["network"] == "GRU")
        assert (row["orthogonality_error"] or 0) < 1e-5


def test_only_the_frozen_gated_network_keeps_its_recurrent_matrix():
    example = load("mnist_1d")
    for name in example.NETWORKS:
        model, optimizer = example.build(name, 8, 2)
        before = model.layer.weight_hh_l0.detach().clone()
        model(torch.randn(5, 3, 1)).square().sum().backward()
        optimizer.step()
        assert torch.equal(before, model.layer.weight_hh_l0) == ("frozen" in name)


def load_mnist_1d_conv():
    load("mnist_1d")
    return load("mnist_1d_conv")


def test_convolutional_networks_read_mnist1d(tmp_path, monkeypatch, capsys):
    fake_mnist1d(monkeypatch, make_mnist1d)
    example = load_mnist_1d_conv()
    rows = example.main(["--smoke", "--output", str(tmp_path)])
    assert [row["network"] for row in rows] == [n for n in example.NETWORKS for _ in range(2)]
    assert len(read(tmp_path / "mnist_1d_conv.csv")) == len(rows)
    assert (tmp_path / "mnist_1d_conv.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for row in rows:
        assert row["network"] in printed
        assert (row["orthogonality_error"] is None) == (row["network"] == "plain")
        assert (row["orthogonality_error"] or 0) < 1e-5


def test_only_orthogonal_convolutions_of_mnist1d_preserve_norms_when_trained():
    example = load_mnist_1d_conv()
    options = types.SimpleNamespace(width=4, kernel=5, k=2, lr=1e-2, angle=0.3)
    for name in example.NETWORKS:
        model, optimizer = example.build(name, options)
        model(torch.randn(40, 3, 1)).square().sum().backward()
        before = [p.detach().clone() for p in model.layer.parameters()]
        optimizer.step()
        pairs = zip(before, model.layer.parameters(), strict=True)
        assert not any(torch.equal(*pair) for pair in pairs)
        channels, length = 1, 40
        for layer in model.layer[:9:3]:
            x = torch.randn(2, channels, length)
            y = layer(x) - layer.bias[:, None]
            assert torch.isclose(y.norm(), x.norm(), rtol=1e-4) == (name != "plain")
            channels, length = y.shape[1:]
        assert (channels, length) == (16, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "4"], "--kernel must be odd, and at least 2 and at most 10"),
        (["--kernel", "11"], "--kernel must be odd, and at least 2 and at most 10"),
        (["--k", "9"], "--k must be at most width / 2 = 8"),
    ],
)
def test_mnist1d_says_what_no_convolution_can_have(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_mnist_1d_conv().main(arguments)
    assert message in capsys.readouterr().err


def test_mnist1d_without_its_package_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(SystemExit, match=r"mnist1d, .* is not installed: pip install mnist1d"):
        load("mnist_1d").main(["--smoke"])


def test_mixed_manifolds_trains_four_kinds_of_parameters(tmp_path):
    result = load("mixed_manifolds").main(["--epochs", "8", "--output", str(tmp_path)])
    assert result["by_direction"] > 0.8
    assert result["by_place"] > 0.5
    assert result["turn (LowRankUnitary)"] < 1e-5
    assert result["prototypes (Sphere)"] < 1e-6
    assert result["anchors (PoincareBall)"] == 0
    assert (tmp_path / "mixed_manifolds.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["permuted_digits", "mixed_manifolds", "mnist_1d", *MEMORY])
def test_an_example_refuses_an_unknown_option(name, capsys):
    with pytest.raises(SystemExit):
        load(name).main(["--unknown"])
    assert "unrecognized arguments: --unknown" in capsys.readouterr().err


def test_orthogonal_resnet_keeps_the_gain_of_its_convolutions_at_one(tmp_path, capsys):
    example = load("orthogonal_resnet")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    with (tmp_path / "orthogonal_resnet.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(records) == 3 * len(example.NETWORKS)
    assert (tmp_path / "orthogonal_resnet.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for name in example.NETWORKS:
        assert name in printed
    for record in records:
        assert (abs(record.gain - 1) < 1e-4) == (record.network != "unconstrained")
        assert (record.seconds > 0) == (record.epoch > 0)


def test_orthogonal_resnet_reads_images_from_a_file(tmp_path):
    example = load("orthogonal_resnet")
    arrays = {
        f"{name}_{part}": values
        for part in ("train", "test")
        for name, values in (
            ("x", np.full((6, 8, 8, 3), 255, dtype="uint8")),
            ("y", np.arange(6)[:, None] % 2),
        )
    }
    np.savez(tmp_path / "images.npz", **arrays)
    (images, labels), _ = example.load(tmp_path / "images.npz")
    assert images.shape == (6, 3, 8, 8)
    assert images.unique().item() == 1
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_deep_norm_preserving_passes_gradients_to_its_first_layer(tmp_path):
    example = load("deep_norm_preserving")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    assert (tmp_path / "deep_norm_preserving.png").read_bytes().startswith(PNG)
    assert len(records) == 2 * len(example.LEARNING_RATES)
    ratios = {record.network: record.gradient_ratio for record in records}
    assert ratios["unconstrained"] < 0.2 < ratios["orthogonal"] < 5


def test_a_quantum_gate_is_learned_twice_to_the_same_infidelity(tmp_path, capsys):
    example = load("learn_a_quantum_gate")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    assert [(r.task, r.method) for r in records] == [
        (task, method) for task, methods in example.METHODS.items() for method in methods
    ]
    assert (tmp_path / "learn_a_quantum_gate.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    whole = {r.method: r.infidelities[-1] for r in records if r.task == "whole"}
    assert whole["ours, k = 16"] < 1e-6
    for record in records:
        assert record.method in printed
        assert record.infidelities[-1] < record.infidelities[0]
    again = example.learn(example.Record("whole", "ours, k = 16", 0), 5, 80)
    assert again.infidelities[-1] == whole["ours, k = 16"]


def test_a_circuit_applies_its_gates_to_neighbouring_qubits():
    example = load("learn_a_quantum_gate")
    torch.manual_seed(0)
    gates = example.random_unitary(len(example.brickwork(4)), 4, 4).contiguous()
    dense = torch.eye(16, dtype=gates.dtype)
    for first, gate in zip(example.brickwork(4), gates, strict=True):
        before, after = (torch.eye(2**m, dtype=gates.dtype) for m in (first, 2 - first))
        dense = torch.kron(torch.kron(before, gate), after) @ dense
    states = torch.randn(16, 3, dtype=gates.dtype)
    assert torch.allclose(example.circuit(4, gates, states), dense @ states, atol=1e-12)


def test_the_infidelity_keeps_its_digits_and_ignores_a_phase():
    example = load("learn_a_quantum_gate")
    torch.manual_seed(0)
    u, w = example.random_unitary(8, 8), example.random_unitary(8, 8)
    overlap = (u.mH @ w).trace().abs() / 8
    assert example.infidelity(w, u) == pytest.approx(float(1 - overlap**2), rel=1e-12)
    assert example.infidelity(u * torch.tensor(0.6 + 0.8j, dtype=u.dtype), u) < 1e-30


def test_a_rotation_of_a_quantized_language_model_is_learned(tmp_path, capsys):
    example = load("rotate_quantized_lm")
    rows = example.main(["--smoke", "--output", str(tmp_path)])
    assert [row[1] for row in rows] == ["exact", "no rotation", "Hadamard", *example.METHODS]
    assert (tmp_path / "rotate_quantized_lm.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    perplexities = {row[1]: row[2] for row in rows}
    for name, perplexity in perplexities.items():
        assert name in printed
        assert 1 < perplexity < 103
    for name in example.METHODS:
        assert perplexities[name] != perplexities["Hadamard"]
    assert example.main(["--smoke", "--output", str(tmp_path)])[3][:3] == rows[3][:3]


def test_a_rotation_passes_through_an_exact_model():
    example = load("rotate_quantized_lm")
    torch.manual_seed(0)
    model = example.LanguageModel(9, 32).double()
    text = torch.randint(9, (2, example.CONTEXT + 1))
    r = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    rough, fine = (model.loss(text, example.rotated(r, bits)).item() for bits in (3, 40))
    exact = model.loss(text).item()
    assert fine == pytest.approx(exact, rel=1e-9)
    assert rough != pytest.approx(exact, rel=1e-4)
    # The same by rotating what writes to the stream, with nothing left to do for what reads it.
    with torch.no_grad():
        for writer in (model.embedding, model.places):
            writer.weight.copy_(writer.weight @ r.mT)
        for qkv, out, up, down in model.blocks:
            for writer in (out, down):
                writer.weight.copy_(r @ writer.weight)
            for reader in (qkv, up):
                reader.weight.copy_(reader.weight @ r.mT)
        model.head.weight.copy_(model.head.weight @ r.mT)
    assert model.loss(text).item() == pytest.approx(exact, rel=1e-9)


def test_quantized_rows_have_few_values_and_the_gradient_goes_straight_through():
    example = load("rotate_quantized_lm")
    torch.manual_seed(0)
    x = torch.randn(5, 400, requires_grad=True)
    rounded = example.quantize(x, 3)
    for row, given in zip(rounded.detach(), x.detach(), strict=True):
        whole = row * 3 / given.abs().max()
        assert torch.allclose(whole, whole.round(), atol=1e-5)
        assert whole.abs().max() == pytest.approx(3)
        assert (row - given).abs().max() <= given.abs().max() / 6 * 1.00001
    direction = torch.randn(5, 400)
    (grad,) = torch.autograd.grad(rounded, x, direction)
    assert torch.equal(grad, direction)


def test_a_transformer_is_adapted_by_rotations_of_its_weights(tmp_path, capsys):
    example = load("orthogonal_finetuning")
    rows = example.main(["--smoke", "--output", str(tmp_path)])
    assert [row[0] for row in rows] == ["not adapted", *example.METHODS]
    assert max(row[4] for row in rows if "rotations" in row[0]) < 1e-5
    assert {row[0]: row[4] for row in rows}["all weights"] > 1e-3
    assert (tmp_path / "orthogonal_finetuning.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert all(row[0] in printed for row in rows)


@pytest.mark.parametrize("block", [None, 8])
def test_rotated_weights_merge_into_the_same_network_with_the_same_singular_values(block):
    example = load("orthogonal_finetuning")
    torch.manual_seed(0)
    model, x, y = example.Reader().double(), torch.randn(5, 8, 8).double(), torch.arange(5)
    weight = model.blocks[0].down.weight.detach().clone()
    before = model(x)
    optimizer = example.rotations(model, block)
    model.double()
    assert torch.allclose(model(x), before)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    adapted = model(x)
    assert not torch.allclose(adapted, before)
    example.merge(model)
    assert torch.allclose(model(x), adapted)
    merged = model.blocks[0].down.weight
    assert torch.allclose(
        *(torch.linalg.svdvals(w.unflatten(1, (-1, block or 128))[:, 0]) for w in (weight, merged))
    )
