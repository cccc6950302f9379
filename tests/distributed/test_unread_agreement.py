"""Processes agree also where the host does not read what the others have."""

import warnings

import pytest
import torch

from geoopt_projunn.optim import waiting

from ._averaging import RULES, Replica


def skip(rule):
    """Disagree where the host does not read: the steps are skipped alike, and counted."""
    replica = Replica(2, rule)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waiting, "reads_at_once", lambda t: False)
        if not replica.is_in:
            return None
        # All read at a first step, and know of themselves alone.
        replica.give("b" if replica.rank == 1 else "a")
        replica.refused(RuntimeError, "in the same order, but another process has others. Nothing")
        replica.give("ab")
        replica.optimizer.step()
        before, plain = replica.bits("ab"), replica.c.detach().clone()
        replica.give("b" if replica.rank == 1 else "a")
        replica.optimizer.step()
        skipped = replica.optimizer.skipped_steps
        for p in (replica.a, replica.b):
            replica.optimizer.state[p]["skipped"].zero_()
        unchanged = replica.bits("ab") == before and not torch.equal(replica.c, plain)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(50):
                replica.optimizer.step()
            replica.give("ab")
            replica.optimizer.step()
    return skipped, unchanged, [str(w.message) for w in caught], replica.is_alike()


@pytest.mark.parametrize("rule", RULES)
def test_where_the_host_does_not_read_steps_are_skipped_alike(world, rule):
    for skipped, unchanged, messages, alike in world.run(skip, rule)[:2]:
        # Of two blocks each counts.
        assert (skipped, unchanged, alike) == (2 if "blocks" in rule else 1, True, True)
        (message,) = messages
        assert "is not finite, or processes had gradients of different parameters" in message


def same(device_reads):
    """Take steps that read, or that do not, and return their bits."""
    replica = Replica(2, "wide, angle")
    if not replica.is_in:
        return None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waiting, "reads_at_once", lambda t: device_reads)
        for _ in range(3):
            replica.give("ab")
            replica.optimizer.step()
    return replica.bits()


def test_the_step_is_the_same_whether_the_host_reads(world):
    assert world.run(same, True) == world.run(same, False)
