"""Digits read pixel by pixel: splits, networks, tuning, MNIST from a folder."""

import sys
import types

import numpy as np
import pytest
import torch

from ._load import PNG, load, read


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


@pytest.mark.parametrize(("arguments", "expected"), [([], {3e-3, 1e-2}), (["--lr", "0"], {0.0})])
def test_a_learning_rate_of_zero_is_taken_at_its_word(arguments, expected, tmp_path, monkeypatch):
    example, rates = load("permuted_digits"), set()

    def record(name, lr, *rest):
        rates.add(lr)
        return [{"network": name, "test_accuracy": 0.1, "orthogonality_error": 1.0}]

    monkeypatch.setattr(example, "train_one", record)
    example.main([*arguments, "--output", str(tmp_path)])
    assert rates == expected


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
