"""torch's schedules set the length of the next step."""

import pytest
from torch.optim import lr_scheduler

from ._helpers import OPTIMIZERS, assert_same_bits, on_manifold, unitary_parameter
from ._runs import SETTINGS, each_setting, run


@each_setting
def test_a_scheduler_sets_the_length_of_the_next_step(kind, options):
    scheduled = unitary_parameter(6, 6)
    by_hand = on_manifold(scheduled.detach())
    left, right = kind([scheduled], **options), kind([by_hand], **options)
    schedule = lr_scheduler.StepLR(left, step_size=2, gamma=0.1)
    for step in range(6):
        right.param_groups[0]["lr"] = schedule.get_last_lr()[0]
        run(left, [scheduled], [step])
        run(right, [by_hand], [step])
        schedule.step()
    assert left.param_groups[0]["lr"] == pytest.approx(options["lr"] * 1e-3)
    assert_same_bits(scheduled, by_hand)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_one_cycle_drives_learning_rate_and_momentum(name):
    kind, options = SETTINGS[name]
    p = unitary_parameter(6, 6)
    by_hand = on_manifold(p.detach())
    left, right = kind([p], **options), kind([by_hand], **options)
    schedule = lr_scheduler.OneCycleLR(left, max_lr=0.1, total_steps=8)
    key = "betas" if name == "adam" else "momentum"
    seen = []
    for step in range(8):
        for value in ("lr", key):
            right.param_groups[0][value] = left.param_groups[0][value]
        seen.append(left.param_groups[0][key])
        run(left, [p], [step])
        run(right, [by_hand], [step])
        if step < 7:
            schedule.step()
    assert len(set(seen)) > 4
    assert_same_bits(p, by_hand)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_scheduler_does_not_warn_about_the_order_of_steps(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    run(optimizer, [p], range(1))
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
