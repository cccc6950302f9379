"""The symbols that are to be copied, and who remembers nothing."""

import pytest
import torch

from ._load import load


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
