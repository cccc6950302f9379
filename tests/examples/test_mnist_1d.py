"""Recurrent and convolutional networks read MNIST-1D."""

import sys
import types

import numpy as np
import pytest
import torch

from ._load import PNG, load, read


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
    (x, y), (x_test, _) = load("_mnist_1d").load()
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
    options = types.SimpleNamespace(hidden=8, k=2)
    for name in example.NETWORKS:
        model, optimizer = example.build(name, options)
        before = model.layer.weight_hh_l0.detach().clone()
        model(torch.randn(5, 3, 1)).square().sum().backward()
        optimizer.step()
        assert torch.equal(before, model.layer.weight_hh_l0) == ("frozen" in name)


def test_convolutional_networks_read_mnist1d(tmp_path, monkeypatch, capsys):
    fake_mnist1d(monkeypatch, make_mnist1d)
    example = load("mnist_1d_conv")
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
    example = load("mnist_1d_conv")
    options = types.SimpleNamespace(width=4, kernel=5, k=2, lr=1e-2, angle=0.3, steps=None)
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


def test_a_number_of_steps_sets_the_angles_of_convolutions_on_mnist1d():
    example = load("mnist_1d_conv")
    options = types.SimpleNamespace(width=4, kernel=5, k=2, lr=1e-2, angle=0.3, steps=1000)
    _, optimizer = example.build("full width", options)
    angles = [g["lr"] for g in optimizer.param_groups if g["normalize"] == "angle"]
    # 5n / (kT) for n = 4, 8 and 16 channels.
    assert angles == pytest.approx([0.01, 0.02, 0.04])


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
        load("mnist_1d_conv").main(arguments)
    assert message in capsys.readouterr().err


def test_mnist1d_without_its_package_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(SystemExit, match=r"mnist1d, .* is not installed: pip install mnist1d"):
        load("mnist_1d").main(["--smoke"])
