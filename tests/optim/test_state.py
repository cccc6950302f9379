"""What the optimizers remember, and how they are driven."""

import copy
import io
import pickle

import geoopt
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    Procrustes,
    Snapshot,
    assert_same_bits,
    assert_same_state,
    assert_within,
    bystander,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "amsgrad": (
        ProjUNNRiemannianAdam,
        {"lr": 0.01, "amsgrad": True, "second_moment": "elementwise"},
    ),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "scalar", "amsgrad": True}),
}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


def mixed_parameters(dtype=torch.float32):
    """One parameter of each kind that an optimizer may hold."""
    sphere = geoopt.Sphere()
    return [
        unitary_parameter(6, 6, dtype=dtype, k=2),
        unitary_parameter(2, 6, 6, dtype=dtype, sketch="lsi", retraction="polar"),
        geoopt.ManifoldParameter(sphere.random(3, 4), manifold=sphere),
        torch.nn.Parameter(torch.randn(3, 4, dtype=dtype)),
    ]


def clones(params):
    return [copy.deepcopy(p) for p in params]


def run(optimizer, params, steps):
    """Step along gradients that the number of the step decides."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()


def assert_same_run(left, left_params, right, right_params):
    for p, q in zip(left_params, right_params, strict=True):
        assert_same_bits(p, q)
        assert_same_state(left.state[p], right.state[q])


# -- saving and loading ----------------------------------------------------------------


@each_setting
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_saved_at_step_7_and_resumed_ends_bit_equal(dtype, kind, options):
    params = mixed_parameters(dtype)
    optimizer = kind(params, **options)
    run(optimizer, params, range(7))
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    run(optimizer, params, range(7, 20))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    others = mixed_parameters(dtype)
    for p, value in zip(others, saved["params"], strict=True):
        p.data.copy_(value)
    resumed = kind(others, lr=1.0)
    resumed.load_state_dict(saved["optimizer"])
    run(resumed, others, range(7, 20))
    assert_same_run(optimizer, params, resumed, others)


@each_setting
def test_a_state_dict_round_trip_is_exact(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, stabilize=5, **options)
    run(optimizer, params, range(3))
    other = kind(clones(params), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    left, right = optimizer.state_dict(), other.state_dict()
    assert left["param_groups"] == right["param_groups"]
    for key, value in left["state"].items():
        assert_same_state(value, right["state"][key])


@each_setting
def test_a_checkpoint_of_module_and_optimizer_loads_with_weights_only(kind, options):
    def build():
        module = torch.nn.RNN(3, 6)
        weight = LowRankUnitary().random(6, 6)
        module.weight_hh_l0 = geoopt.ManifoldParameter(weight)
        return module, kind(module.named_parameters(), **options)

    module, optimizer = build()
    run(optimizer, list(module.parameters()), range(4))
    file = io.BytesIO()
    torch.save((module.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other, resumed = build()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for m, opt in ((module, optimizer), (other, resumed)):
        run(opt, list(m.parameters()), range(4, 8))
    assert_same_run(optimizer, list(module.parameters()), resumed, list(other.parameters()))
    assert isinstance(other.weight_hh_l0.manifold, LowRankUnitary)


@each_setting
def test_all_loaded_state_is_on_the_device_of_its_parameter(kind, options):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], **options)
    feed(optimizer, p, gradients(p, 2))
    elsewhere = geoopt.ManifoldParameter(p.detach().to("meta"), manifold=p.manifold)
    other = kind([elsewhere], **options)
    other.load_state_dict(optimizer.state_dict())
    devices = {name: value.device.type for name, value in other.state[elsewhere].items()}
    assert devices == dict.fromkeys(devices, "meta")


def test_a_state_dict_holds_nothing_but_tensors_and_plain_values():
    params = mixed_parameters()
    optimizer = ProjUNNRiemannianAdam(params)
    run(optimizer, params, range(2))
    state = optimizer.state_dict()
    for values in state["state"].values():
        assert all(isinstance(value, (torch.Tensor, int)) for value in values.values())
    for group in state["param_groups"]:
        assert all(
            isinstance(value, (int, float, str, tuple, list, type(None)))
            for value in group.values()
        )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_dict_of_other_shapes_is_refused(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    with pytest.raises(ValueError, match="doesn't match the size"):
        kind(mixed_parameters()[:2]).load_state_dict(optimizer.state_dict())


@each_setting
def test_a_deepcopy_goes_on_alike_and_apart(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, **options)
    run(optimizer, params, range(3))
    other_params, other = copy.deepcopy((params, optimizer))
    assert other.param_groups[0]["params"][0] is other_params[0]
    before = Snapshot(other)
    run(optimizer, params, range(3, 6))
    for p, q in zip(before.values, other_params, strict=True):
        assert_same_bits(p, q)
    run(other, other_params, range(3, 6))
    assert_same_run(optimizer, params, other, other_params)


@each_setting
def test_a_pickled_optimizer_goes_on_alike(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, **options)
    run(optimizer, params, range(3))
    other_params, other = pickle.loads(pickle.dumps((params, optimizer)))
    for opt, ps in ((optimizer, params), (other, other_params)):
        run(opt, ps, range(3, 6))
    assert_same_run(optimizer, params, other, other_params)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_copy_keeps_its_default_for_stabilize(kind, copier):
    other = copier(kind([bystander()], stabilize=3))
    other.add_param_group({"params": [bystander()]})
    assert [group["stabilize"] for group in other.param_groups] == [3, 3]


# -- groups ----------------------------------------------------------------------------


@each_setting
def test_a_group_that_is_added_later_is_stepped_from_then_on(kind, options):
    first, second = (unitary_parameter(6, 6, dtype=torch.float64) for _ in range(2))
    apart = on_manifold(second.detach())
    optimizer = kind([first], **options)
    run(optimizer, [first], range(2))
    optimizer.add_param_group({"params": [second], "lr": 0.02})
    assert optimizer.param_groups[1]["lr"] == 0.02
    generator_free = gradients(second, 3)
    feed(optimizer, second, generator_free)
    feed(kind([apart], **{**options, "lr": 0.02}), apart, generator_free)
    assert_within(second, apart, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_groups_have_their_own_learning_rates(kind):
    params = [unitary_parameter(6, 6, dtype=torch.float64) for _ in range(3)]
    apart = [on_manifold(p.detach()) for p in params]
    rates = (0.0, 0.01, 0.1)
    optimizer = kind(
        [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], lr=1.0
    )
    others = [kind([p], lr=lr) for p, lr in zip(apart, rates, strict=True)]
    run(optimizer, params, range(3))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, other in zip(apart, others, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            other.step()
    for p, q in zip(params, apart, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_may_come_from_a_generator(kind):
    module = torch.nn.Linear(3, 3)
    module.weight = geoopt.ManifoldParameter(LowRankUnitary().random(3, 3))
    for params in (module.parameters(), [{"params": module.parameters()}]):
        optimizer = kind(params)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in held] == [id(module.weight), id(module.bias)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_may_have_names(kind):
    module = torch.nn.Linear(3, 3)
    module.weight = geoopt.ManifoldParameter(LowRankUnitary().random(3, 3))
    optimizer = kind(module.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    before = [p.detach().clone() for p in module.parameters()]
    run(optimizer, list(module.parameters()), range(1))
    assert not any(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    names = optimizer.state_dict()["param_groups"][0]["param_names"]
    assert names == ["weight", "bias"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bare_parameter_in_place_of_a_list_is_refused(kind):
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        kind(unitary_parameter(4, 4))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zero_grad_clears_every_kind_of_gradient(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    run(optimizer, params, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, q in zip(params, before, strict=True):
        assert_same_bits(p, q)


# -- schedulers ------------------------------------------------------------------------


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


# -- driving a step --------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(dtype, kind):
    problem = Procrustes(6, 6, dtype=dtype)
    p = unitary_parameter(6, 6, dtype=dtype)
    by_hand = on_manifold(p.detach())
    left, right = kind([p], lr=0.05), kind([by_hand], lr=0.05)
    modes = []

    def closure():
        modes.append(torch.is_grad_enabled())
        left.zero_grad()
        loss = problem.loss(p)
        loss.backward()
        return loss

    for _ in range(3):
        with torch.no_grad():
            value = left.step(closure)
        right.zero_grad()
        loss = problem.loss(by_hand)
        loss.backward()
        assert right.step() is None
        assert_same_bits(value, loss)
    assert modes == [True] * 3
    assert_same_bits(p, by_hand)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_closure_that_raises_leaves_everything_as_it_is(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    run(optimizer, params, range(2))
    before = Snapshot(optimizer)

    def closure():
        raise KeyError("no data")

    with pytest.raises(KeyError, match="no data"):
        optimizer.step(closure)
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_accumulated_gradients_take_the_step_of_their_sum(dtype, kind):
    together = unitary_parameter(6, 6, dtype=dtype)
    apart = on_manifold(together.detach())
    weights = [torch.randn(6, 6, dtype=dtype) for _ in range(3)]

    def loss(p, weight):
        return (weight.conj() * p).real.sum() + ((weight @ p).abs() ** 4).sum() / 4

    left, right = kind([together], lr=0.01), kind([apart], lr=0.01)
    for _ in range(3):
        left.zero_grad()
        right.zero_grad()
        sum(loss(together, weight) for weight in weights).backward()
        for weight in weights:
            loss(apart, weight).backward()
        left.step()
        right.step()
    assert_within(together, apart, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_clip_grad_norm_scales_the_step(dtype):
    clipped = unitary_parameter(6, 6, dtype=dtype)
    by_hand = on_manifold(clipped.detach())
    plain, other = (torch.nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    left = ProjUNNRiemannianSGD([clipped, plain], lr=0.1)
    right = ProjUNNRiemannianSGD([by_hand, other], lr=0.1)
    grads = [3 * torch.randn(p.shape, dtype=dtype) for p in (clipped, plain)]
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    clipped.grad, plain.grad = (grad.clone() for grad in grads)
    by_hand.grad, other.grad = (grad / norm for grad in grads)
    assert_within(torch.nn.utils.clip_grad_norm_([clipped, plain], 1.0), norm, 1e-13)
    left.step()
    right.step()
    # clip_grad_norm_ divides by the norm plus 1e-6.
    assert_within(clipped, by_hand, 1e-6)
    assert_within(plain, other, 1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_hooks_run_once_each_around_the_step(kind):
    params = mixed_parameters()
    optimizer = kind(params, lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", params[0].detach().clone())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("post", params[0].detach().clone())))
    before = params[0].detach().clone()
    run(optimizer, params, range(1))
    assert [name for name, _ in seen] == ["pre", "post"]
    assert_same_bits(seen[0][1], before)
    assert_same_bits(seen[1][1], params[0])
    assert not torch.equal(before, params[0])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_global_step_hooks_run_once_each_with_this_optimizer(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, *_: seen.append(("pre", opt))),
        register_optimizer_step_post_hook(lambda opt, *_: seen.append(("post", opt))),
    ]
    try:
        run(optimizer, params, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert [(name, opt is optimizer) for name, opt in seen] == [("pre", True), ("post", True)]


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_pre_hook_may_change_the_gradients(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)

    def spoil(*_):
        p.grad.fill_(torch.nan)

    optimizer.register_step_pre_hook(spoil)
    feed(optimizer, p, gradients(p, 1))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_builds_no_graph_and_marks_the_parameter_as_changed(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    versions = [p._version for p in params]
    run(optimizer, params, range(1))
    assert all(p._version > version for p, version in zip(params, versions, strict=True))
    for p in params:
        assert p.is_leaf
        assert p.requires_grad
        for value in optimizer.state[p].values():
            assert not (isinstance(value, torch.Tensor) and value.requires_grad)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_autograd_notices_a_step_between_forward_and_backward(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    loss = (p @ p).sum()
    feed(optimizer, p, gradients(p, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_parameter_keeps_its_storage(kind):
    params = [*mixed_parameters(), unitary_parameter(6, 6, k=2)]
    addresses = [p.data_ptr() for p in params]
    optimizer = kind(params, stabilize=1)
    run(optimizer, params, range(3))
    assert [p.data_ptr() for p in params] == addresses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_of_plain_and_unitary_parameters_are_independent(kind):
    """A mixed optimizer takes the steps that one optimizer for each parameter would."""
    params = mixed_parameters(torch.float64)
    apart = clones(params)
    optimizer = kind(params, lr=0.01)
    held = [bystander() for _ in apart]
    others = [kind([p, more], lr=0.01) for p, more in zip(apart, held, strict=True)]
    run(optimizer, params, range(4))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for p, other in zip(apart, others, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            other.step()
    for p, q in zip(params, apart, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize(
    "other", [torch.optim.Adam, geoopt.optim.RiemannianAdam, ProjUNNRiemannianSGD]
)
def test_options_that_a_checkpoint_lacks_take_their_defaults(other):
    p, q = unitary_parameter(6, 6), unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianAdam([p], second_moment="scalar", stabilize=4)
    optimizer.load_state_dict(other([q], lr=0.25).state_dict())
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.25
    assert group["second_moment"] == "scalar"
    before = p.detach().clone()
    feed(optimizer, p, gradients(p, 2))
    assert not torch.equal(p, before)
    assert optimizer.skipped_steps == 0
