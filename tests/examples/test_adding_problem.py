"""The numbers that are to be added, and how their sequences grow."""

import math

import pytest
import torch

from ._load import load


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
    assert "expected a whole number from 0 on, got '-1'" in capsys.readouterr().err
