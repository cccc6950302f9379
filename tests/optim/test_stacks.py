"""Parameters of one kind are stepped as one batch, and stay where they are."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends import batch_sizes
from tests._modes import Recorder

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    on_manifold,
    rotation,
    unitary_parameter,
)

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "feedback": (ProjUNNRiemannianSGD, {"lr": 0.05, "error_feedback": 0.5}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
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


def copies_nothing(optimizer):
    with Recorder() as recorder:
        optimizer.step()
    (smallest, *_) = sorted(p.numel() for p in optimizer.param_groups[0]["params"])
    # The counters of skipped steps, a number a matrix, are read as one.
    return recorder.largest < smallest and not recorder.operations & {"_foreach_copy_", "copy_"}


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
@pytest.mark.usefixtures("each_way")
def test_a_step_leaves_every_tensor_where_it_is(kind, options):
    params = alike(4, 2, 8, 8)
    optimizer = kind(params, **options)
    step(optimizer, params, 0)
    before = [{"x": p.data_ptr(), **optimizer.state[p]} for p in params]
    step(optimizer, params, 1, absent=(2,))
    step(optimizer, params, 2)
    for p, tensors in zip(params, before, strict=True):
        assert p.data_ptr() == tensors.pop("x")
        assert optimizer.state[p].keys() == tensors.keys()
        assert all(optimizer.state[p][name] is tensors[name] for name in tensors)
        assert all(tensor._base is None for tensor in tensors.values())


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "scalar"])
def test_a_step_of_many_copies_nothing(name):
    kind, options = SETTINGS[name]
    params = alike(4)
    optimizer = kind(params, **options)
    step(optimizer, params, 0)
    assert copies_nothing(optimizer)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
def test_nor_does_one_of_parameters_stored_by_columns():
    params = alike(3)
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
        # One of another kind, for it is stored otherwise.
        turned = place == 1
        params[place].grad = (params[place - 1].mT if turned else params[place - 1]).detach()
        others[place].grad = params[place].grad.clone()
    for each in (params, others):
        ProjUNNRiemannianSGD(each, lr=0.1).step()
    for p, q in zip(params, others, strict=True):
        assert_same_bits(p, q)


@each_setting
@pytest.mark.usefixtures("each_way")
def test_conjugated_gradients_of_several_are_what_they_stand_for(kind, options):
    params = alike(3, dtype=torch.complex128)
    others = [on_manifold(p.detach()) for p in params]
    optimizer, other = kind(params, **options), kind(others, **options)
    for _ in range(3):
        grads = torch.randn(3, 8, 8, dtype=torch.complex128)
        for p, q, grad in zip(params, others, grads.conj().unbind(0), strict=True):
            p.grad, q.grad = grad, grad.resolve_conj()
            assert p.grad.is_conj()
        optimizer.step()
        other.step()
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)


@pytest.mark.usefixtures("each_way")
def test_parameters_that_are_conjugated_views_are_stepped_with_the_others():
    params = alike(3, dtype=torch.complex128)
    others = [on_manifold(p.detach()) for p in params]
    params[1].data = params[1].data.conj().resolve_conj().conj()
    assert params[1].is_conj()
    for each in (params, others):
        optimizer = ProjUNNRiemannianSGD(each, lr=0.1)
        step(optimizer, each, 0)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)


@pytest.mark.usefixtures("each_way")
def test_parameters_that_share_memory_step_one_after_the_other():
    (p,) = alike(1)
    q, one_after_the_other = on_manifold(p.detach()), on_manifold(p.detach())
    q.data = p.data
    grads = [torch.randn(8, 8, dtype=torch.float64) for _ in range(2)]
    p.grad, q.grad = grads
    ProjUNNRiemannianSGD([p, q], lr=0.1).step()
    for grad in grads:
        one_after_the_other.grad = grad
        ProjUNNRiemannianSGD([one_after_the_other], lr=0.1).step()
    assert_within(p, one_after_the_other, 1e-14)


@each_setting
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.usefixtures("each_way")
def test_state_may_be_stored_in_any_way(dtype, shape, kind, options):
    params = alike(3, *shape, dtype=dtype)
    others = [on_manifold(p.detach()) for p in params]
    optimizer, other = kind(params, **options), kind(others, **options)
    for number in range(3):
        step(optimizer, params, number)
        step(other, others, number)
        state = optimizer.state[params[1]]
        for name, value in state.items():
            state[name] = torch.stack((value, value), -1)[..., 0]
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)
        for name, value in other.state[q].items():
            wide = torch.complex128
            assert_within(optimizer.state[p][name].to(wide), value.to(wide), 1e-12)


def test_what_the_kernels_refuse_is_stepped_as_without_it():
    params = alike(2)
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1, momentum=0.9)
    step(optimizer, params, 0)
    optimizer.state[params[1]]["momentum_buffer"] = torch.zeros(8, 8)
    others = [on_manifold(p.detach()) for p in params]
    with backends.use("reference"):
        reference = ProjUNNRiemannianSGD(others, lr=0.1, momentum=0.9)
        for p, q in zip(params, others, strict=True):
            reference.state[q].update({n: v.clone() for n, v in optimizer.state[p].items()})
        step(reference, others, 1)
    step(optimizer, params, 1)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)


@pytest.mark.usefixtures("each_way")
def test_gradients_that_share_one_row_may_be_that_of_a_point():
    params = alike(2)
    others = [on_manifold(p.detach()) for p in params]
    row = torch.randn(8, dtype=torch.float64)
    params[0].grad, params[1].grad = params[0].detach()[0].expand(8, 8), row.expand(8, 8)
    for p, q in zip(params, others, strict=True):
        q.grad = p.grad.clone(memory_format=torch.contiguous_format)
    for each in (params, others):
        ProjUNNRiemannianSGD(each, lr=0.1).step()
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)


def test_state_without_data_is_refused():
    params = alike(2)
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    step(optimizer, params, 0)
    optimizer.state[params[1]]["step"] = torch.zeros((), dtype=torch.int64, device="meta")
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"must be on one device|not on the expected device"):
        step(optimizer, params, 1)
    for p, old in zip(params, before, strict=True):
        assert_same_bits(p, old)


# -- how many at once ------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)], ids=str)
def test_stacks_that_exceed_the_cache_change_nothing(shape, kind, monkeypatch):
    params = alike(5, *shape)
    others = [on_manifold(p.detach()) for p in params]
    optimizer, other = kind(params, lr=0.02), kind(others, lr=0.02)
    bytes_of_two = 2 * params[0].numel() * 8
    with backends.use("reference"):
        for number in range(3):
            step(optimizer, params, number)
            with monkeypatch.context() as patch:
                patch.setattr(batch_sizes, "_PART_BYTES", bytes_of_two // torch.get_num_threads())
                assert batch_sizes.parts_of_list(others) == [slice(0, 2), slice(2, 4), slice(4, 6)]
                step(other, others, number)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-14)


@pytest.mark.parametrize("view", [torch.conj, torch._neg_view])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.usefixtures("each_way")
def test_state_that_is_a_lazy_view_is_stepped(kind, view):
    options = {"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}
    params = [unitary_parameter(8, 8, dtype=torch.complex128) for _ in range(2)]
    others = [on_manifold(p.detach()) for p in params]
    optimizer, expected = kind(params, lr=0.02, **options), kind(others, lr=0.02, **options)
    name = "momentum_buffer" if options else "exp_avg"
    step(optimizer, params, 0)
    step(expected, others, 0)
    for p, q in zip(params, others, strict=True):
        buffer = view(optimizer.state[p][name])
        optimizer.state[p][name] = buffer
        expected.state[q][name] = buffer.clone().resolve_conj().resolve_neg()
    step(optimizer, params, 1)
    step(expected, others, 1)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-13)
