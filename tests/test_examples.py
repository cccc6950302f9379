"""The examples run at a small size and write what they promise."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_permuted_digits_trains_three_networks_side_by_side(tmp_path, capsys):
    example = load("permuted_digits")
    records = example.main(["--smoke", "--output", str(tmp_path)])
    with (tmp_path / "permuted_digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) == 2 * len(example.NETWORKS)
    assert (tmp_path / "permuted_digits.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    for name in example.NETWORKS:
        assert name in printed
    errors = {record.network: record.orthogonality_error for record in records}
    assert errors["orthogonal"] < 1e-5 < errors["unconstrained"]


def test_permuted_digits_splits_do_not_overlap():
    train, validation, test = load("permuted_digits").load_splits()
    assert [len(labels) for _, labels in (train, validation, test)] == [1150, 287, 360]
    rows = torch.cat([pixels for pixels, _ in (train, validation, test)]).flatten(1)
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
    for make in (example.orthogonal, example.unconstrained):
        torch.manual_seed(0)
        states.append(make(16, 1, 1e-3)[0].state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_mixed_manifolds_trains_four_kinds_of_parameters(tmp_path):
    result = load("mixed_manifolds").main(["--epochs", "8", "--output", str(tmp_path)])
    assert result["by_direction"] > 0.8
    assert result["by_place"] > 0.5
    assert result["turn (LowRankUnitary)"] < 1e-5
    assert result["prototypes (Sphere)"] < 1e-6
    assert result["anchors (PoincareBall)"] == 0
    assert (tmp_path / "mixed_manifolds.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["permuted_digits", "mixed_manifolds"])
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
        assert (abs(record.gain - 1) < 1e-4) == record.network.startswith("orthogonal")


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
