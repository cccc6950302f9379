"""Parameters of one kind are stepped as one batch, and their state lies in one piece."""

import copy
import io

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.linalg import extension
from geoopt_projunn.optim import rank_k, stacks
from tests._modes import Recorder

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_same_state,
    assert_within,
    on_manifold,
    rotation,
    unitary_parameter,
)

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "feedback": (ProjUNNRiemannianSGD, {"lr": 0.05, "error_feedback": 0.5}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01}),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "scalar", "amsgrad": True}),
}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


def alike(count, *shape, dtype=torch.float64):
    return [unitary_parameter(*(shape or (8, 8)), dtype=dtype) for _ in range(count)]


def step(optimizer, params, number, absent=()):
    """Step along gradients that the number of the step and the place decide."""
    generator = torch.Generator().manual_seed(number)
    for place, p in enumerate(params):
        grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        p.grad = None if place in absent else grad
    optimizer.step()


def lies_in_one_piece(optimizer, params):
    names = optimizer.state[params[0]]
    wholes = [{id(optimizer.state[p][name]._base) for p in params} for name in names]
    some = all(optimizer.state[params[0]][name]._base is not None for name in names)
    return some and all(len(found) == 1 for found in wholes)


def copies_nothing(optimizer):
    with Recorder() as recorder:
        optimizer.step()
    return not recorder.operations & {"stack", "cat", "_foreach_copy_", "copy_"}


@pytest.mark.parametrize("batch", [(), (2,), (2, 1)], ids=str)
@each_setting
@pytest.mark.usefixtures("each_way")
def test_together_and_apart_are_the_same_whoever_is_absent(kind, options, batch):
    together = alike(4, *batch, 8, 8)
    apart = [on_manifold(p.detach()) for p in together]
    optimizer, others = kind(together, **options), [kind([p], **options) for p in apart]
    for number, absent in enumerate([(), (1,), (1,), (), (0, 3), (0, 1, 2), (), ()]):
        step(optimizer, together, number, absent)
        for p, q, other in zip(together, apart, others, strict=True):
            if p.grad is not None:
                q.grad = p.grad.clone()
                other.step()
        for p, q, other in zip(together, apart, others, strict=True):
            assert_within(p, q, 1e-13)
            for name, value in optimizer.state[p].items():
                assert_within(value.double(), other.state[q][name].double(), 1e-12)


@each_setting
def test_from_the_second_step_on_state_lies_in_one_piece(kind, options):
    params = alike(4, 2, 8, 8)
    optimizer = kind(params, **options)
    for number in range(2):
        step(optimizer, params, number)
        assert lies_in_one_piece(optimizer, params)
    before = [optimizer.state[p]["step"] for p in params]
    step(optimizer, params, 2)
    for p, counter in zip(params, before, strict=True):
        assert optimizer.state[p]["step"] is counter
        assert counter.tolist() == [3, 3]


@pytest.mark.skipif(not extension.BUILT, reason="the extension is not built")
def test_a_step_of_many_copies_nothing():
    params = alike(4)
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    step(optimizer, params, 0)
    assert copies_nothing(optimizer)
    # As does one of parameters stored by columns.
    params = [on_manifold(rotation(8, 8)) for _ in range(3)]
    for p in params:
        p.data = p.data.mT
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    step(optimizer, params, 0)
    assert copies_nothing(optimizer)


@pytest.mark.usefixtures("each_way")
def test_gradients_may_be_stored_in_any_way():
    for store in (lambda g: g.mT.contiguous().mT, lambda g: torch.stack((g, g), -1)[..., 0]):
        params = alike(3)
        others = [on_manifold(p.detach()) for p in params]
        grads = [torch.randn(8, 8, dtype=torch.float64) for _ in params]
        for p, q, grad in zip(params, others, grads, strict=True):
            p.grad, q.grad = grad, grad
        params[1].grad = store(grads[1])
        for each in (params, others):
            ProjUNNRiemannianSGD(each, lr=0.1).step()
        for p, q in zip(params, others, strict=True):
            assert_within(p, q, 1e-13)


@pytest.mark.usefixtures("each_way")
def test_a_gradient_that_is_another_point_is_the_point_before_the_step():
    start = [rotation(8, 8, dtype=torch.float64) for _ in range(3)]
    params, others = ([on_manifold(x) for x in start] for _ in range(2))
    for place in range(3):
        params[place].grad = params[place - 1].detach()
        others[place].grad = start[place - 1].clone()
    for each in (params, others):
        ProjUNNRiemannianSGD(each, lr=0.1).step()
    for p, q in zip(params, others, strict=True):
        assert_same_bits(p, q)


# -- whose memory it is ----------------------------------------------------------------


def memory_of_state(optimizer):
    storages = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
    }
    return sum(storages.values())


def test_parameters_frozen_one_by_one_keep_no_memory_alive():
    params = alike(6)
    optimizer = ProjUNNRiemannianAdam(params, lr=0.01)
    step(optimizer, params, 0)
    whole = memory_of_state(optimizer)
    for frozen in range(1, 6):
        step(optimizer, params, frozen, absent=range(frozen))
        assert memory_of_state(optimizer) == whole


def test_what_comes_together_later_is_put_together():
    params = alike(4)
    optimizer = ProjUNNRiemannianAdam(params, lr=0.01)
    step(optimizer, params, 0, absent=(0, 1))
    step(optimizer, params, 1, absent=(2, 3))
    assert lies_in_one_piece(optimizer, params[:2])
    assert not lies_in_one_piece(optimizer, params)
    before = memory_of_state(optimizer)
    step(optimizer, params, 2)
    assert lies_in_one_piece(optimizer, params)
    assert memory_of_state(optimizer) == before


@each_setting
def test_a_state_replaced_or_removed_is_taken_as_it_is(kind, options):
    params = alike(3)
    optimizer = kind(params, **options)
    others = [on_manifold(p.detach()) for p in params]
    reference = [kind([q], **options) for q in others]
    for number in range(4):
        if number == 2:
            for name, value in optimizer.state[params[1]].items():
                optimizer.state[params[1]][name] = torch.zeros_like(value)
                reference[1].state[others[1]][name].zero_()
            del optimizer.state[params[2]], reference[2].state[others[2]]
        step(optimizer, params, number)
        for p, q, other in zip(params, others, reference, strict=True):
            q.grad = p.grad.clone()
            other.step()
            assert_within(p, q, 1e-13)
            assert optimizer.state[p]["step"] == other.state[q]["step"]


@each_setting
def test_copies_and_checkpoints_of_it_are_independent(kind, options):
    params = alike(3)
    optimizer = kind(params, **options)
    step(optimizer, params, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    size = file.tell()
    copied_params, copied = copy.deepcopy((params, optimizer))
    loaded_params = [on_manifold(p.detach()) for p in params]
    loaded = kind(loaded_params, **options)
    file.seek(0)
    loaded.load_state_dict(torch.load(file))
    for number in (1, 2):
        step(optimizer, params, number)
    kept = [copy.deepcopy(optimizer.state[p]) for p in params]
    for other, other_params in ((copied, copied_params), (loaded, loaded_params)):
        for number in (1, 2):
            step(other, other_params, number)
        assert lies_in_one_piece(other, other_params)
        for p, q, state in zip(params, other_params, kept, strict=True):
            assert_same_bits(p, q)
            assert_same_state(state, other.state[q])
            assert_same_state(state, optimizer.state[p])
    again = io.BytesIO()
    torch.save(optimizer.state_dict(), again)
    assert again.tell() < 1.1 * size


def test_what_a_graph_may_replay_is_left_where_it_is(monkeypatch):
    buffers = [torch.zeros(3) for _ in range(2)]
    assert stacks._may_move(buffers)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not stacks._may_move(buffers)


# -- how many at once ------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)], ids=str)
def test_stacks_that_exceed_the_cache_change_nothing(shape, kind, monkeypatch):
    params = alike(5, *shape)
    others = [on_manifold(p.detach()) for p in params]
    optimizer, other = kind(params, lr=0.02), kind(others, lr=0.02)
    bytes_of_two = 2 * params[0].numel() * 8
    for number in range(3):
        step(optimizer, params, number)
        with monkeypatch.context() as patch:
            patch.setattr(rank_k, "_PART_BYTES", bytes_of_two // torch.get_num_threads())
            assert [len(stack) for stack in rank_k._stacks(others)] == [2, 2, 1]
            step(other, others, number)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-14)


def test_one_batch_is_cut_into_equal_parts(monkeypatch):
    x = unitary_parameter(7, 8, 8)
    monkeypatch.setattr(rank_k, "_PART_BYTES", 3 * 64 * 4 // torch.get_num_threads())
    assert rank_k._matrices_at_once([x]) == 4
    assert rank_k._matrices_at_once([x, x]) is None
    monkeypatch.setattr(rank_k, "_PART_BYTES", 7 * 64 * 4)
    assert rank_k._matrices_at_once([x]) is None
