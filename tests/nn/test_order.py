"""Runs and chunks of time steps are where single steps are."""

from itertools import pairwise

import pytest
import torch

from geoopt_projunn.nn.recurrences.order import Order

SIZES = ([1], [3] * 7, [5, 4, 2], [4, 4, 4, 2, 2, 1, 1, 1, 1])

every_order = pytest.mark.parametrize(
    "order", [Order(sizes, reverse) for sizes in SIZES for reverse in (False, True)], ids=str
)
every_count = pytest.mark.parametrize("count", [1, 2, 4, 100])


def steps_of(order):
    """Return the rows of each time step by their places, in the order of the steps."""
    places = torch.arange(sum(order.batch_sizes)).split(order.batch_sizes)
    return [step.tolist() for step in (reversed(places) if order.reverse else places)]


@every_order
@every_count
@pytest.mark.parametrize("join", [False, True])
def test_runs_of_chunks_are_all_steps(order, count, join):
    chunks = order.chunks(count)
    assert len(chunks) <= count
    places, before, steps = torch.arange(sum(order.batch_sizes)), [], steps_of(order)
    for chunk in chunks:
        assert chunk.previous(places).tolist() == before
        own = chunk.of(places)
        assert [step.tolist() for step in chunk.split(own)] == steps[: len(chunk.batch_sizes)]
        for run, ends in zip(chunk.runs(join=join), chunk.ends(own, join=join), strict=True):
            assert run.shared == min(len(before), run.rows)
            taken, steps = steps[: run.steps], steps[run.steps :]
            assert [t.tolist() for t in ends] == [taken[0], taken[-1]]
            assert {len(step) for step in taken} == {run.rows}
            before = taken[-1]
    assert not steps


@pytest.mark.parametrize("reverse", [False, True])
def test_joined_runs_are_as_long_as_they_can_be(reverse):
    runs = Order([4, 4, 4, 2, 2, 1], reverse).runs(join=True)
    expected = [(0, 1, 1), (1, 2, 2), (2, 4, 3)] if reverse else [(0, 4, 3), (2, 2, 2), (1, 1, 1)]
    assert runs == expected


@every_order
@every_count
def test_rows_continue_those_of_the_step_before(order, count):
    steps = steps_of(order)
    expected = {at: other for pair in pairwise(steps) for other, at in zip(*pair, strict=False)}
    found = {}
    for chunk in order.chunks(count):
        for at, other, rows in chunk.continued():
            assert 0 <= at <= at + rows <= sum(chunk.batch_sizes)
            found |= {chunk.start + at + row: other + row for row in range(rows)}
    assert found == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_one_product_takes_all_rows_that_lie_in_a_row(reverse):
    sizes = [3] * 100 + [2] * 50
    assert len([*Order(sizes, reverse).continued()]) == 2
