"""Three methods learn a rotation."""

import torch

from ._load import PNG, load


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
