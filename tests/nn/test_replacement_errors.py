"""What cannot replace a parameter that belongs on a manifold is refused by name."""

import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN, UnitaryRNN
from tests.nn._kept import (
    MODULES,
    assert_kept,
    every_module,
    owner_of,
    parameters,
    treated,
    values,
)


class Parameter(torch.nn.Parameter):
    """Somebody else's."""


WRONG = {
    "rectangular": (lambda p: p.detach()[..., :-1], ValueError, r"must have shape .*got"),
    "vector": (lambda p: p.detach().flatten(), ValueError, "must have|at least 2 dimensions"),
    "too small for the rank": (lambda p: p.detach()[..., :2, :2], ValueError, "`k` must satisfy"),
    "half precision": (
        lambda p: p.detach().abs().to(torch.bfloat16),
        TypeError,
        "got torch.bfloat16; half precision cannot hold orthogonality",
    ),
    "integers": (lambda p: p.detach().abs().long(), TypeError, "got torch.int64; convert it"),
}


def assert_as_before(module, before, kept):
    for n, p in parameters(module).items():
        assert p is before[n]
        assert torch.equal(p, kept[n])


@every_module
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_and_nothing_changes(name, case):
    make, names = MODULES[name]
    change, error, rule = WRONG[case]
    module = make()
    before, kept = parameters(module), values(module)
    for n in names:
        owner, leaf = owner_of(module, n)
        p = torch.nn.Parameter(change(getattr(owner, leaf)), requires_grad=False)
        words = rf"`{n}` of .* is on the LowRankUnitary\(.*{rule}[\s\S]*delete the attribute"
        with pytest.raises(error, match=words):
            owner.register_parameter(leaf, p)
        assert type(p) is torch.nn.Parameter
    assert_as_before(module, before, kept)
    assert_kept(module, names)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (OrthogonalRNN, "must be real, got torch.complex64; make a module of the complex kind"),
        (UnitaryRNN, "must be complex, got torch.float32; make a module of the real kind"),
    ],
)
def test_a_real_layer_takes_no_complex_weight_nor_a_complex_one_a_real(kind, rule):
    layer = kind(3, 8)
    dtype = torch.float32 if layer.is_complex else torch.complex64
    with pytest.raises(TypeError, match=rf"`weight_hh_l0` of {kind.__name__} {rule}"):
        layer.weight_hh_l0 = torch.nn.Parameter(torch.eye(8, dtype=dtype))
    assert_kept(layer, ["weight_hh_l0"], LowRankUnitary())


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


@every_module
@pytest.mark.usefixtures("swap")
def test_loading_half_precision_is_refused_and_nothing_changes(name):
    make, names = MODULES[name]
    module = make()
    before, kept = parameters(module), values(module)
    state = {n: p.detach().abs().to(torch.bfloat16) for n, p in make().state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"`{names[0]}` .*half precision cannot hold orthog"):
        module.load_state_dict(state, assign=True)
    owner, _ = owner_of(module, names[0])
    for n, p in owner.named_parameters():
        path = names[0].rpartition(".")[0]
        full = f"{path}.{n}" if path else n
        assert p is before[full]
        assert torch.equal(p, kept[full])
    assert_kept(module, names)


def test_the_error_names_the_parameter_as_it_was_named_before():
    module = treated(torch.nn.TransformerEncoderLayer(8, 2), "self_attn.out_proj.weight")
    with pytest.raises(ValueError, match=r"`self_attn.out_proj.weight` of NonDynamically"):
        module.self_attn.out_proj.weight = torch.nn.Parameter(torch.ones(8, 4))


@pytest.mark.parametrize("name", ["linear", "one of two linears", "tied linears"])
def test_modules_of_others_become_half_precision_and_are_not_stepped_then(name):
    make, names = MODULES[name]
    module = make().bfloat16()
    assert_kept(module, names)
    optimizer = ProjUNNRiemannianSGD(module.parameters(), lr=0.1)
    module(torch.randn(2, 8, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(TypeError, match="half precision cannot hold orthogonality"):
        optimizer.step()
