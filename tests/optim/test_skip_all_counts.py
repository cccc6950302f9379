"""skip_nonfinite="all": what is counted, saved and said of skipped steps."""

import copy

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    read_as_from_a_gpu,
)
from ._skipping import company, feed, gradients, spoilt


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_skipped_steps_count_matrices_and_by_parameter_all(kind):
    params = company()
    optimizer = kind(params, lr=0.05, skip_nonfinite="all")
    for step in range(4):
        feed(optimizer, params, gradients(params, step))
    for step in range(2):
        feed(optimizer, params, spoilt(params, 9 + step, 4, torch.nan))
    assert optimizer.skipped_steps == 2 * (1 + 3 + 1)
    expected = {0: 2, 1: 6, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}
    assert optimizer.skipped_steps_by_parameter() == expected


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_without_unitary_parameters_counts_steps(kind):
    params = company()[4:6]
    optimizer = kind(params, skip_nonfinite="all")
    for step in range(3):
        feed(optimizer, params, gradients(params, step))
        feed(optimizer, params, spoilt(params, step, 0, torch.inf))
    assert optimizer.skipped_steps == 3


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_has_the_same_names_before_and_after_a_step_is_skipped(kind):
    """Checkpoints of several processes are loaded by name."""
    params = company()
    optimizer = kind(params, lr=0.1, skip_nonfinite="all")
    feed(optimizer, params, gradients(params, 0))
    before = [set(optimizer.state[p]) for p in params]
    assert all(before)
    feed(optimizer, params, spoilt(params, 1, 4, torch.nan))
    assert [set(optimizer.state[p]) for p in params] == before


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_counters_are_saved_and_loaded(kind):
    params = company()
    optimizer = kind(params, lr=0.1, skip_nonfinite="all")
    feed(optimizer, params, gradients(params, 0))
    feed(optimizer, params, spoilt(params, 1, 4, torch.nan))
    others = [copy.deepcopy(p) for p in params]
    resumed = kind(others, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.skipped_steps_by_parameter() == optimizer.skipped_steps_by_parameter()
    # Also without a copy they are counted apart.
    shared = kind([copy.deepcopy(p) for p in params], lr=0.1)
    shared.load_state_dict(optimizer.state_dict())
    counters = [
        [
            state["skipped_steps"].data_ptr()
            for state in opt.state.values()
            if "skipped_steps" in state
        ]
        for opt in (optimizer, shared)
    ]
    assert counters[0]
    assert not set(counters[0]) & set(counters[1])
    for opt, ps in ((optimizer, params), (resumed, others)):
        feed(opt, ps, gradients(ps, 2))
    for p, q in zip(params, others, strict=True):
        assert_same_bits(p, q)


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_stabilizing_in_turn_counts_skipped_steps_on_every_device(kind):
    params = company(torch.float32)
    optimizer = kind(params, lr=0.1, skip_nonfinite="all", stabilize=3)
    for step in range(2):
        feed(optimizer, params, gradients(params, step))
    before = [p.detach().clone() for p in params]
    feed(optimizer, params, spoilt(params, 2, 4, torch.nan))
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p, value)
    assert optimizer.param_groups[0]["step"] == 3


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
def test_counters_of_half_precision_parameters_count_on():
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = ProjUNNRiemannianSGD([plain], lr=0.1, skip_nonfinite="all")
    plain.grad = torch.full_like(plain, torch.nan)
    for _ in range(300):
        optimizer.step()
    assert optimizer.skipped_steps == 300


def test_on_a_gpu_the_gradient_to_blame_is_named(monkeypatch):
    read_as_from_a_gpu(monkeypatch)
    rnn = OrthogonalRNN(3, 8)
    optimizer = ProjUNNRiemannianSGD(rnn.named_parameters(), lr=0.1, skip_nonfinite="all")
    for step in range(49):
        for p in rnn.parameters():
            p.grad = torch.ones_like(p)
        if step == 20:
            rnn.bias_ih_l0.grad[2] = torch.inf
        optimizer.step()
    with pytest.warns(UserWarning, match="The gradient of parameter `bias_ih_l0` of shape"):
        optimizer.step()
