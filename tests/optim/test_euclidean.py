"""Plain parameters take the steps of torch.optim, bit for bit."""

import inspect

import pytest
import torch
from torch.optim import lr_scheduler

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import assert_same_bits, assert_same_state, bystander, without_counters

SGD = (ProjUNNRiemannianSGD, torch.optim.SGD)
ADAM = (ProjUNNRiemannianAdam, torch.optim.Adam)

SGD_OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "maximize": True},
    {"lr": 0.1, "momentum": 0.8, "dampening": 0.1, "weight_decay": 0.05, "maximize": True},
    {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "maximize": True},
    {"lr": torch.tensor(0.1), "momentum": 0.9},
]
ADAM_OPTIONS = [
    {},
    {"lr": 0.1},
    {"lr": 0.1, "betas": (0.5, 0.7)},
    {"lr": 0.1, "betas": (0.0, 0.9)},
    {"lr": 0.1, "eps": 0.5},
    {"lr": 0.1, "eps": 0.0},
    {"lr": 0.1, "amsgrad": True},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "maximize": True},
    {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05, "maximize": True, "betas": (0.8, 0.8)},
    {"lr": torch.tensor(0.1)},
]
CASES = [(*SGD, options) for options in SGD_OPTIONS] + [
    (*ADAM, options) for options in ADAM_OPTIONS
]


def plain_parameters():
    generator = torch.Generator().manual_seed(3)
    kinds = [
        ((3, 4), torch.float32),
        ((5,), torch.float64),
        ((2, 3), torch.complex64),
        ((), torch.complex128),
        ((6, 6), torch.float32),
    ]
    return [
        torch.nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator))
        for shape, dtype in kinds
    ]


def twins(kind, reference, options, *groups):
    """Build our optimizer and torch's over equal parameters."""
    ours, theirs = plain_parameters(), plain_parameters()
    held = bystander()
    optimizer = kind([*ours, held], **options)
    return ours, theirs, optimizer, reference(theirs, **options), held


def step_both(ours, theirs, optimizer, expected, held):
    for p, q in zip(ours, theirs, strict=True):
        q.grad = torch.randn_like(q)
        p.grad = q.grad.clone()
    held.grad = torch.randn_like(held)
    optimizer.step()
    expected.step()


@pytest.mark.parametrize(("kind", "reference", "options"), CASES)
def test_plain_parameters_and_their_state_equal_those_of_torch(kind, reference, options):
    ours, theirs, optimizer, expected, held = twins(kind, reference, options)
    start = [p.detach().clone() for p in ours]
    for _ in range(8):
        step_both(ours, theirs, optimizer, expected, held)
    for p, q, first in zip(ours, theirs, start, strict=True):
        assert_same_bits(p, q)
        assert_same_state(without_counters(optimizer.state[p]), expected.state[q])
        assert not torch.equal(p, first)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.5),
        lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
        lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=3),
        lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.3, total_steps=12),
        lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.2, step_size_up=3),
    ],
    ids=["StepLR", "LambdaLR", "CosineAnnealingWarmRestarts", "OneCycleLR", "CyclicLR"],
)
@pytest.mark.parametrize(
    ("kind", "reference", "options"), [(*SGD, {"lr": 0.1, "momentum": 0.9}), (*ADAM, {"lr": 0.1})]
)
def test_schedulers_drive_plain_parameters_as_in_torch(kind, reference, options, scheduler):
    ours, theirs, optimizer, expected, held = twins(kind, reference, options)
    schedules = scheduler(optimizer), scheduler(expected)
    for _ in range(10):
        step_both(ours, theirs, optimizer, expected, held)
        for schedule in schedules:
            schedule.step()
    assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_reduce_on_plateau_drives_plain_parameters_as_in_torch(kind, reference):
    ours, theirs, optimizer, expected, held = twins(kind, reference, {"lr": 0.1})
    schedules = [lr_scheduler.ReduceLROnPlateau(opt, patience=0) for opt in (optimizer, expected)]
    for _ in range(6):
        step_both(ours, theirs, optimizer, expected, held)
        for schedule in schedules:
            schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] < 0.1
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("kind", "reference", "first", "second"),
    [
        (*SGD, {"lr": 0.1, "momentum": 0.9}, {"lr": 0.02, "weight_decay": 0.1}),
        (*ADAM, {"lr": 0.1, "amsgrad": True}, {"lr": 0.02, "betas": (0.5, 0.5)}),
    ],
)
def test_groups_with_their_own_options_equal_those_of_torch(kind, reference, first, second):
    ours, theirs = plain_parameters(), plain_parameters()
    held = bystander()

    def groups(params, *more):
        return [{"params": params[:2], **first}, {"params": [*params[2:], *more], **second}]

    optimizer, expected = kind(groups(ours, held), lr=0.5), reference(groups(theirs), lr=0.5)
    for _ in range(6):
        step_both(ours, theirs, optimizer, expected, held)
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_a_tensor_learning_rate_can_be_changed_in_place(kind, reference):
    rate, other_rate = torch.tensor(0.1), torch.tensor(0.1)
    ours, theirs, held = plain_parameters(), plain_parameters(), bystander()
    optimizer, expected = kind([*ours, held], lr=rate), reference(theirs, lr=other_rate)
    for _ in range(5):
        step_both(ours, theirs, optimizer, expected, held)
        rate.mul_(0.5)
        other_rate.mul_(0.5)
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


def test_momentum_that_is_turned_on_later_starts_as_in_torch():
    ours, theirs, optimizer, expected, held = twins(*SGD, {"lr": 0.1})
    held.requires_grad_(False)
    for momentum in (0.0, 0.0, 0.9, 0.9, 0.0, 0.5):
        for opt in (optimizer, expected):
            opt.param_groups[0]["momentum"] = momentum
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        optimizer.step()
        expected.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"maximize": True}]
)
def test_sparse_gradients_of_plain_parameters_are_stepped_as_in_torch(options):
    weight = torch.randn(10, 3)
    ours = torch.nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=True)
    theirs = torch.nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=True)
    optimizer = ProjUNNRiemannianSGD([ours.weight, bystander()], lr=0.1, **options)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, **options)
    for _ in range(5):
        index = torch.randint(10, (4,))
        for embedding, opt in ((ours, optimizer), (theirs, expected)):
            opt.zero_grad()
            embedding(index).square().sum().backward()
            assert embedding.weight.grad.is_sparse
            opt.step()
    assert_same_bits(ours.weight, theirs.weight)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_plain_parameters_without_a_gradient_stay(kind, reference):
    ours, theirs, optimizer, expected, held = twins(kind, reference, {"lr": 0.1})
    step_both(ours, theirs, optimizer, expected, held)
    for params in (ours, theirs):
        params[1].grad = None
    before = ours[1].detach().clone()
    optimizer.step()
    expected.step()
    assert_same_bits(ours[1], before)
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_half_precision_plain_parameters_are_stepped_as_in_torch(kind, reference):
    p = torch.nn.Parameter(torch.randn(4, 4).bfloat16())
    q = torch.nn.Parameter(p.detach().clone())
    optimizer, expected = kind([p, bystander()], lr=0.1), reference([q], lr=0.1)
    for _ in range(4):
        q.grad = torch.randn_like(q)
        p.grad = q.grad.clone()
        optimizer.step()
        expected.step()
    assert_same_bits(p, q)


@pytest.mark.parametrize(("kind", "reference"), [SGD, ADAM])
def test_defaults_are_those_of_torch(kind, reference):
    ours = inspect.signature(kind).parameters
    theirs = inspect.signature(reference).parameters
    shared = ours.keys() & theirs.keys() - {"params"}
    assert len(shared) == {SGD: 8, ADAM: 10}[kind, reference]
    assert {name: ours[name].default for name in shared} == {
        name: theirs[name].default for name in shared
    }
