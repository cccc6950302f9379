"""What cannot replace a parameter that belongs on a manifold is refused by name."""

import geoopt
import pytest
import torch

import geoopt_projunn
from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN, orthogonalize_
from tests.nn._kept import (
    MODULES,
    OTHERS,
    OWN,
    assert_kept,
    every_module,
    owner_of,
    parameters,
    treated,
    untouched,
    values,
)


class Parameter(torch.nn.Parameter):
    """Somebody else's."""


FLAT = {
    "rectangular": (lambda p: p.detach()[..., :-1], r"it must have shape .*got"),
    "vector": (lambda p: p.detach().flatten(), "it must have|at least 2 dimensions"),
    "of another size": (
        lambda p: torch.nn.functional.pad(p.detach(), (0, 1, 0, 1)),
        r"it must have shape \(.*\), got \(",
    ),
    "too small for the rank": (lambda p: p.detach()[..., :2, :2], "`k` must satisfy"),
}
NUMBERS = {
    "half precision": (
        lambda p: p.detach().abs().to(torch.bfloat16),
        "got torch.bfloat16; half pr",
    ),
    "integers": (lambda p: p.detach().abs().long(), "got torch.int64; convert it"),
}


def assert_as_before(module, before, kept):
    for n, p in untouched(module).items():
        assert p is before[n]
        assert torch.equal(p, kept[n])


def assert_refused(name, change, error, words):
    make, names = MODULES[name]
    module = make()
    before, kept = parameters(module), values(module)
    for n in names:
        owner, leaf = owner_of(module, n)
        for set_one in (owner.register_parameter, owner.__setattr__):
            p = torch.nn.Parameter(change(getattr(owner, leaf)), requires_grad=False)
            with pytest.raises(error, match=rf"`{n}` of .* is on the LowRankUnitary\(.*{words}"):
                set_one(leaf, p)
            assert type(p) is torch.nn.Parameter
            assert_kept(module, names)
    assert_as_before(module, before, kept)


@every_module
@pytest.mark.parametrize("case", FLAT)
def test_another_shape_is_refused_and_nothing_changes(name, case):
    change, rule = FLAT[case]
    assert_refused(name, change, ValueError, rf"{rule}[\s\S]*delete the attribute")


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c) for n in MODULES for c in NUMBERS if n in OWN or c == "integers"],
)
def test_another_dtype_is_refused_and_nothing_changes(name, case):
    change, rule = NUMBERS[case]
    assert_refused(name, change, TypeError, rule)


@every_module
def test_messages_do_not_speak_of_an_argument_that_nobody_gave(name):
    make, names = MODULES[name]
    module = make()
    owner, leaf = owner_of(module, names[0])
    for change, _ in [*FLAT.values(), NUMBERS["integers"]]:
        p = torch.nn.Parameter(change(getattr(owner, leaf)), requires_grad=False)
        with pytest.raises((TypeError, ValueError), match="does not fit") as raised:
            owner.register_parameter(leaf, p)
        assert "`x`" not in str(raised.value)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_refused_attribute_of_a_torch_layer_is_not_used(kind):
    layer = getattr(torch.nn, kind)(8, 8)
    layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.detach()[:8])
    orthogonalize_(layer, "weight_hh_l0")
    flat = list(layer._flat_weights)
    with pytest.raises(ValueError, match="`weight_hh_l0` of"):
        layer.weight_hh_l0 = torch.nn.Parameter(torch.ones(8, 5))
    assert len(flat) == len(layer._flat_weights)
    assert all(p is q for p, q in zip(layer._flat_weights, flat, strict=True))


FIELDS = {
    "OrthogonalRNN": ("weight_hh_l0", "real", "; for complex weights use UnitaryRNN."),
    "UnitaryRNN": ("weight_hh_l0", "complex", "; for real weights use OrthogonalRNN."),
    "OrthogonalRNNCell": ("weight_hh", "real", "; for complex weights use UnitaryRNNCell."),
    "OrthogonalConv1d": ("weight_real", "real", "; for complex weights use UnitaryConv1d."),
    "OrthogonalConv2d": ("weight", "complex", "."),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_real_module_takes_no_complex_weight_nor_a_complex_one_a_real(kind):
    name, field, remedy = FIELDS[kind]

    class Users(getattr(geoopt_projunn.nn, kind)):
        """A class of somebody else for the same field."""

    module = Users(4, 4, *[4] * kind.startswith("OrthogonalConv"))
    before = getattr(module, name)
    dtype = torch.float32 if before.is_complex() else torch.complex64
    words = rf"`{name}` of Users must be {field}, got {dtype}{remedy}$"
    with pytest.raises(TypeError, match=words):
        setattr(module, name, torch.nn.Parameter(torch.ones(before.shape, dtype=dtype)))
    assert untouched(module)[name] is before


def test_modules_of_others_take_complex_weights():
    module = treated(torch.nn.Linear(8, 8), "weight")
    module.weight = torch.nn.Parameter(torch.eye(8, dtype=torch.complex64))
    assert_kept(module, ["weight"])


def test_another_class_of_parameters_is_refused():
    module = treated(torch.nn.Linear(8, 8), "weight")
    with pytest.raises(TypeError, match=r"`weight` of Linear .*must be a torch.nn.Parameter or a"):
        module.weight = Parameter(torch.eye(8))


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_a_refused_attribute_does_not_stay_among_the_flat_weights(kind):
    layer = kind(3, 8)
    with pytest.raises(ValueError, match="`weight_hh_l0` of"):
        layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.detach()[:, :5])
    assert_kept(layer, ["weight_hh_l0"], LowRankUnitary())


def halved(module):
    return {n: p.detach().abs().to(torch.bfloat16) for n, p in module.state_dict().items()}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.usefixtures("swap")
def test_loading_half_precision_is_refused_and_nothing_changes(name):
    make, names = MODULES[name]
    module = make()
    before, kept = parameters(module), values(module)
    words = rf"`{names[0]}` .*half precision cannot hold orthog.*Loading without `assign` converts"
    with pytest.raises(RuntimeError, match=words):
        module.load_state_dict(halved(make()), assign=True)
    assert_as_before(module, before, kept)
    assert_kept(module, names)


REAL = {name: MODULES[name][0] for name in OWN if "unitary" not in name} | {
    "small kernel": lambda: geoopt_projunn.nn.BlockOrthogonalConv2d(4, 4, 3)
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.usefixtures("swap")
def test_loading_complex_values_for_real_ones_is_refused_and_nothing_changes(name, assign):
    model = torch.nn.ModuleDict({"a": REAL[name](), "b": torch.nn.Linear(3, 2)})
    layer = model["a"]
    before, kept = parameters(layer), values(layer)
    names = [n for n, p in before.items() if hasattr(p, "manifold") and not p.is_complex()]
    state = {n: value * (1 + 1j) for n, value in REAL[name]().state_dict().items()}
    source = {n: value.clone() for n, value in state.items()}
    whole = {f"a.{n}": value for n, value in state.items()}
    whole |= {"b.weight": torch.ones(2, 3), "b.bias": torch.ones(2)}
    kind = type(layer).__name__
    has_counterpart = kind.startswith(("OrthogonalRNN", "OrthogonalConv"))
    remedy = f"; for complex weights use {kind.replace('Orthogonal', 'Unitary')}"
    words = rf"of {kind} must be real, got torch.complex64{remedy if has_counterpart else ''}\."
    with pytest.raises(RuntimeError, match=words) as raised:
        model.load_state_dict(whole, assign=assign)
    for n in names:
        assert str(raised.value).count(f"`a.{n}` of") == 1
    assert_as_before(layer, before, kept)
    assert all(torch.equal(state[n], value) for n, value in source.items())
    assert torch.equal(model["b"].weight, torch.ones(2, 3))


def test_copying_real_values_into_a_unitary_layer_loses_nothing():
    layer, source = UnitaryRNN(3, 8), OrthogonalRNN(3, 8)
    layer.load_state_dict(source.state_dict())
    for n, p in layer.state_dict().items():
        assert torch.equal(p, source.state_dict()[n].to(p.dtype))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.usefixtures("swap")
def test_errors_of_all_modules_are_listed(name):
    make, names = MODULES[name]
    module = torch.nn.ModuleDict({"a": make(), "b": torch.nn.Linear(3, 2), "c": make()})
    state = {n: value.clone() for n, value in module.state_dict().items()}
    state |= {f"a.{n}": value for n, value in halved(module["a"]).items()}
    state |= {f"c.{n}": value for n, value in halved(module["c"]).items()}
    state["b.weight"] = torch.ones(5, 5)
    with pytest.raises(RuntimeError, match=r"size mismatch for b.weight") as raised:
        module.load_state_dict(state, assign=True)
    for part in ("a", "c"):
        for n in names:
            assert str(raised.value).count(f"`{part}.{n}` of") == 1
        assert_kept(module[part], names)


@every_module
@pytest.mark.parametrize("wrong", ["bias", "missing"])
def test_a_load_that_fails_leaves_the_source_alone(name, wrong):
    make, names = MODULES[name]
    module, source = torch.nn.Sequential(make(), torch.nn.Linear(2, 2)), make()
    others = {n: LowRankUnitary(1) for n in names}
    if wrong == "bias":  # a source on no manifold
        others = {}
        source._parameters = dict(source._parameters)
        for n in names:
            owner, leaf = owner_of(source, n)
            plain = torch.nn.Parameter(getattr(owner, leaf).detach())
            delattr(owner, leaf)
            setattr(owner, leaf, plain)
    for n, manifold in others.items():
        source.get_parameter(n).manifold = manifold
    before = untouched(source)
    state = {f"0.{n}": p for n, p in before.items()}
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(state, assign=True)
    for n, p in untouched(source).items():
        assert p is before[n]
        assert type(p) is (geoopt.ManifoldParameter if n in others else torch.nn.Parameter)
        assert getattr(p, "manifold", None) == others.get(n)
    assert_kept(module, [f"0.{n}" for n in names])


def test_the_error_names_the_parameter_as_it_was_named_before():
    module = treated(torch.nn.TransformerEncoderLayer(8, 2), "self_attn.out_proj.weight")
    with pytest.raises(ValueError, match=r"`self_attn.out_proj.weight` of NonDynamically"):
        module.self_attn.out_proj.weight = torch.nn.Parameter(torch.ones(8, 4))


HALVES = {
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to meta and bfloat16": lambda m: m.to("meta", torch.bfloat16).to_empty(device="cpu"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("how", HALVES)
def test_modules_of_others_become_half_precision_and_go_on_from_there(name, how, swap):
    if swap and name in ("rnn", "complex linear", "tied linears"):
        pytest.skip("torch cannot swap their parameters, or swap them twice")
    make, names = MODULES[name]
    module = HALVES[how](make())
    assert_kept(module, names)
    module.load_state_dict(module.state_dict(), assign=True)
    assert_kept(module, names)
    owner, leaf = owner_of(module, names[0])
    setattr(owner, leaf, torch.nn.Parameter(getattr(owner, leaf).detach().clone()))
    assert_kept(module, names)
    module.to("meta")
    assert_kept(module, names)


def test_the_optimizer_does_not_step_half_precision():
    make, _ = MODULES["linear"]
    module = make().bfloat16()
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    module(torch.randn(2, 8, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(TypeError, match="half precision cannot hold orthogonality"):
        optimizer.step()
