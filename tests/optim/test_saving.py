"""What an optimizer remembers is saved and loaded, and a run goes on from it bit for bit."""

import copy
import io

import geoopt
import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    Snapshot,
    assert_same_state,
    feed,
    gradients,
    unitary_parameter,
)
from ._runs import assert_same_run, clones, each_setting, mixed_parameters, run


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_counted_apart_by_two_optimizers_of_one_state(kind):
    """torch loads the tensors of a state dict as they are, if it need not convert them."""
    p, q = unitary_parameter(8, 8), unitary_parameter(8, 8)
    first, second = kind([p], lr=0.1), kind([q], lr=0.1)
    feed(first, p, gradients(p, 1))
    second.load_state_dict(first.state_dict())
    for name in ("step", "skipped"):
        assert first.state[p][name].data_ptr() != second.state[q][name].data_ptr()
    feed(second, q, gradients(q, 2))
    assert [int(first.state[p]["step"]), int(second.state[q]["step"])] == [1, 3]


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
def test_so_it_does_if_torch_loads_the_model_before_the_optimizer(kind, options):
    """To fill a state, torch takes a step of length zero."""
    models = [torch.nn.ParameterList(mixed_parameters()) for _ in range(2)]
    optimizer, resumed = (kind(model.parameters(), **options) for model in models)
    (params, others) = map(list, models)
    run(optimizer, params, range(3))
    weights, state = copy.deepcopy(get_state_dict(models[0], optimizer))
    set_model_state_dict(models[1], weights)
    set_optimizer_state_dict(models[1], resumed, state)
    assert_same_run(optimizer, params, resumed, others)
    run(optimizer, params, range(3, 6))
    run(resumed, others, range(3, 6))
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
    assert devices == dict.fromkeys(optimizer.state[p], "meta")


def test_a_state_dict_holds_nothing_but_tensors_and_plain_values():
    params = mixed_parameters()
    optimizer = ProjUNNRiemannianAdam(params)
    run(optimizer, params, range(2))
    state = optimizer.state_dict()
    assert len(state["state"]) == len(params)
    for values in state["state"].values():
        assert all(isinstance(value, (torch.Tensor, int)) for value in values.values())
    for group in state["param_groups"]:
        assert all(
            isinstance(value, (int, float, str, tuple, list, type(None)))
            for value in group.values()
        )


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("step", None, "NoneType"),
        ("skipped", 3, "int"),
        ("momentum_buffer", None, "NoneType"),
        ("momentum_buffer", torch.ones(6, 6).to_sparse(), "one of layout torch.sparse_coo"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, value, got):
    params = [torch.nn.Parameter(torch.randn(3)), unitary_parameter(6, 6)]
    optimizer = ProjUNNRiemannianSGD([("plain", params[0]), ("weight", params[1])], momentum=0.9)
    run(optimizer, params, range(2))
    before = Snapshot(optimizer)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][1][name] = value
    with pytest.raises(TypeError, match=f"`{name}` in the state of .*`weight`.*dense.* got {got};"):
        optimizer.load_state_dict(damaged)
    before.assert_unchanged()
    run(optimizer, params, range(2, 3))


@pytest.mark.parametrize("change", ["expanded", "made in inference mode"])
def test_a_state_that_cannot_be_written_to_is_copied(change):
    p, q = clones([unitary_parameter(6, 6)] * 2)
    optimizers = [ProjUNNRiemannianSGD([r], lr=0.1, error_feedback=0.5) for r in (p, q)]
    run(optimizers[0], [p], range(1))
    run(optimizers[1], [q], range(1))
    state = optimizers[0].state_dict()
    state["state"][0]["feedback_buffer"] = torch.ones(6, 6)
    optimizers[0].load_state_dict(copy.deepcopy(state))
    with torch.inference_mode(change != "expanded"):
        state["state"][0]["feedback_buffer"] = (
            torch.ones(1).expand(6, 6) if change == "expanded" else torch.ones(6, 6)
        )
    optimizers[1].load_state_dict(state)
    for optimizer, r in zip(optimizers, (p, q), strict=True):
        run(optimizer, [r], range(1, 3))
    assert_same_run(optimizers[0], [p], optimizers[1], [q])


@each_setting
def test_a_state_is_loaded_where_torchs_default_device_is_another(kind, options):
    params = mixed_parameters()
    optimizer = kind(params, **options)
    run(optimizer, params, range(2))
    copied = clones(params)
    other = kind(copied, **options)
    with torch.device("meta"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, range(2, 4))
    run(other, copied, range(2, 4))
    assert_same_run(optimizer, params, other, copied)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_dict_of_other_shapes_is_refused(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    with pytest.raises(ValueError, match="doesn't match the size"):
        kind(mixed_parameters()[:2]).load_state_dict(optimizer.state_dict())


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
