"""Orthogonal convolutions in a residual network."""

import csv

import numpy as np
import pytest

from ._load import PNG, load


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
