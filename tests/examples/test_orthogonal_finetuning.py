"""A transformer adapted by rotations."""

import pytest
import torch

from ._load import PNG, load


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
