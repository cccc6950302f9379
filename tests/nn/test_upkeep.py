"""Reports on a module, and the way back to the manifold."""

import copy

import geoopt
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.init import haar
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalLinear,
    OrthogonalRNN,
    UnitaryRNN,
    orthogonality_errors,
    orthogonalize_,
    project_,
)
from tests._asserts import assert_within
from tests._matrices import DTYPES, polar_reference


def model():
    parts = {
        "real": OrthogonalRNN(3, 8, 2, bidirectional=True, k=2),
        "complex": UnitaryRNN(3, 8, dtype=torch.complex128),
        "convolution": OrthogonalConv2d(4, 4, 4, init="haar"),
        "linear": torch.nn.Linear(8, 8),
    }
    module = torch.nn.ModuleDict(parts)
    orthogonalize_(module, "linear.weight", init="haar")
    return module


NAMES = [
    "real.weight_hh_l0",
    "real.weight_hh_l0_reverse",
    "real.weight_hh_l1",
    "real.weight_hh_l1_reverse",
    "complex.weight_hh_l0",
    "convolution.weight_real",
    "convolution.weight",
    "linear.weight",
]


@torch.no_grad()
def disturb(module, size=0.1):
    for name in NAMES:
        p = module.get_parameter(name)
        p.add_(size * torch.randn_like(p))
    return module


@pytest.mark.parametrize("exact", [False, True])
def test_the_report_has_every_name(exact):
    errors = orthogonality_errors(model(), exact=exact)
    assert list(errors) == NAMES
    assert max(errors.values()) < 1e-5
    assert errors["complex.weight_hh_l0"] < 1e-13


def test_the_exact_report_is_the_norm_of_the_worst_matrix():
    module = disturb(model())
    for name, error in orthogonality_errors(module, exact=True).items():
        x = module.get_parameter(name).detach().to(torch.complex128)
        norm = torch.linalg.matrix_norm(x.mH @ x - torch.eye(x.shape[-1]))
        assert error == pytest.approx(float(norm.max()), rel=1e-5)


def test_the_estimate_is_near_the_norm_of_the_worst_matrix():
    module = disturb(model())
    exact = orthogonality_errors(module, exact=True)
    for name, error in orthogonality_errors(module).items():
        assert 0.5 * exact[name] < error < 2 * exact[name]


@pytest.mark.parametrize("exact", [False, True])
def test_a_parameter_with_two_names_is_under_both(exact):
    layer = OrthogonalRNN(3, 8, bidirectional=True)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    errors = orthogonality_errors(layer, exact=exact)
    assert list(errors) == ["weight_hh_l0", "weight_hh_l0_reverse"]
    assert len(set(errors.values())) == 1


def test_a_module_without_such_parameters():
    module = torch.nn.Linear(4, 4)
    before = copy.deepcopy(module.state_dict())
    assert orthogonality_errors(module) == {}
    assert project_(module) is module
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "count", "share"), [(8, 1000, 0.5), (64, 200, 0.2), (256, 10, 0.1)])
def test_the_estimate_of_an_error_in_all_directions(dtype, n, count, share):
    manifold = LowRankUnitary()
    x = haar(count, n, n, dtype=dtype) + 0.001 * torch.randn(count, n, n, dtype=dtype)
    estimate, exact = manifold.estimate_orthogonality_error(x), manifold.orthogonality_error(x)
    assert estimate.shape == (count,)
    assert estimate.dtype == dtype.to_real()
    assert (estimate / exact - 1).abs().max() < share


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [8, 64])
def test_the_estimate_of_an_error_in_one_direction(dtype, n):
    manifold = LowRankUnitary()
    v = torch.nn.functional.normalize(torch.randn(300, n, 1, dtype=dtype), dim=1)
    x = haar(300, n, n, dtype=dtype)
    x = x + 0.001 * (x @ v) @ v.mH
    ratio = manifold.estimate_orthogonality_error(x) / manifold.orthogonality_error(x)
    assert ratio.min() > 0.1
    assert ratio.max() < 2.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (5, 2, 64, 64), (256, 256)])
def test_the_estimate_of_rounding(dtype, size):
    x = haar(*size, dtype=dtype)
    manifold = LowRankUnitary()
    estimate, exact = manifold.estimate_orthogonality_error(x), manifold.orthogonality_error(x)
    assert estimate.shape == size[:-2]
    assert (estimate < 4 * exact + size[-1] ** 0.5 * torch.finfo(dtype).eps).all()


def test_an_estimate_of_what_is_not_finite_is_not_finite():
    x = torch.eye(4).repeat(3, 1, 1)
    x[1, 2, 3] = torch.nan
    assert LowRankUnitary().estimate_orthogonality_error(x).isfinite().tolist() == [True, 0, True]


def test_an_estimate_carries_no_gradient_and_needs_no_values():
    x = torch.eye(4, requires_grad=True)
    assert not LowRankUnitary().estimate_orthogonality_error(x).requires_grad
    # Of a tensor without values nothing could be read back.
    empty = torch.empty(2, 4, 4, device="meta")
    assert LowRankUnitary().estimate_orthogonality_error(empty).shape == (2,)


@pytest.mark.parametrize("n", [256, 65536])
def test_an_estimate_costs_the_products_of_four_vectors(n):
    with FlopCounterMode(display=False) as counter:
        LowRankUnitary().estimate_orthogonality_error(torch.empty(n, n, device="meta"))
    assert counter.get_total_flops() == 2 * 2 * 4 * n**2


@pytest.mark.parametrize(
    ("x", "error", "rule"),
    [
        (torch.ones(4, 3), ValueError, r"`x` must have shape \(\*, n, n\), got \(4, 3\)"),
        (torch.ones(4, 4).half(), TypeError, "half precision cannot hold orthogonality"),
    ],
)
def test_an_estimate_takes_points_only(x, error, rule):
    with pytest.raises(error, match=rule):
        LowRankUnitary().estimate_orthogonality_error(x)


def test_projection_goes_to_the_nearest_unitary_matrix():
    module = disturb(model())
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    assert project_(module) is module
    for name, p in module.named_parameters():
        assert p.requires_grad
        if name in NAMES:
            assert_within(p.detach(), polar_reference(before[name]), 1e-4)
        else:
            assert torch.equal(p, before[name])
    assert max(orthogonality_errors(module, exact=True).values()) < 1e-5


def test_projection_leaves_what_is_on_the_manifold_bit_for_bit():
    module = model()
    before = copy.deepcopy(module.state_dict())
    project_(module)
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


@pytest.mark.parametrize("bad", NAMES)
def test_projection_changes_nothing_if_one_matrix_is_not_finite(bad):
    module = disturb(model())
    with torch.no_grad():
        module.get_parameter(bad)[..., 0, 0] = torch.inf
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=rf"`{bad}` cannot be projected: it must be finite"):
        project_(module)
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


@pytest.mark.parametrize("function", [orthogonality_errors, project_])
def test_what_has_no_values_or_too_few_bits_is_named(function):
    with pytest.raises(ValueError, match=r"`real.weight_hh_l0` must have values, but is on the m"):
        function(model().to("meta"))
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    orthogonalize_(module, "0.weight")
    with pytest.raises(TypeError, match=r"`0.weight` cannot be .*: it must have one of the dty"):
        function(module.half())


def averaged(multi_avg_fn=None):
    torch.manual_seed(0)
    module = model()
    average = AveragedModel(module, multi_avg_fn=multi_avg_fn)
    for _ in range(3):
        with torch.no_grad():
            for name in NAMES:
                p = module.get_parameter(name)
                p.copy_(p.manifold.random(*p.shape, dtype=p.dtype))
        average.update_parameters(module)
    return module, average


AVERAGES = {"SWA": lambda: averaged(), "EMA": lambda: averaged(get_ema_multi_avg_fn(0.9))}


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_is_put_back(kind):
    module, average = AVERAGES[kind]()
    errors = orthogonality_errors(average)
    assert list(errors) == [f"module.{name}" for name in NAMES]
    assert min(errors.values()) > 0.1
    for name in NAMES:
        assert average.module.get_parameter(name).manifold == module.get_parameter(name).manifold
    project_(average)
    assert max(orthogonality_errors(average, exact=True).values()) < 1e-5


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_that_is_copied_back_is_put_back(kind, assign):
    module, average = AVERAGES[kind]()
    module.load_state_dict(copy.deepcopy(average.module.state_dict()), assign=assign)
    expected = {n: polar_reference(module.get_parameter(n).detach().clone()) for n in NAMES}
    assert min(orthogonality_errors(module).values()) > 0.1
    project_(module)
    for name in NAMES:
        assert_within(module.get_parameter(name).detach(), expected[name], 1e-4)


@pytest.mark.parametrize("function", [orthogonality_errors, project_])
def test_a_stand_in_is_refused(function):
    layer = OrthogonalLinear(4, 4)

    def inside(weight):
        def forward(x):
            with pytest.raises(RuntimeError, match=r"`weight` belongs .* outside of `functional"):
                function(layer)
            return x

        layer.forward = forward
        torch.func.functional_call(layer, {"weight": weight}, (torch.ones(4),))

    inside(torch.eye(4))
    del layer.forward
    layer._parameters["weight"] = torch.nn.Parameter(torch.eye(4, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"`weight` cannot be measured or projected: .*bfloat16"):
        function(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euclidean_parameters_of_one_call_stay_what_they_were(dtype):
    layer = torch.nn.Module()
    names = ["first", "second"]
    for name in names:
        setattr(layer, name, geoopt.ManifoldParameter(torch.eye(4), manifold=LowRankUnitary()))
    layer.forward = lambda: layer.first @ layer.second
    others = {name: geoopt.ManifoldParameter(torch.eye(4, dtype=dtype)) for name in names}
    torch.func.functional_call(layer, others, ())
    assert {type(p.manifold) for p in others.values()} == {geoopt.Euclidean}
    assert {type(p.manifold) for p in layer.parameters()} == {LowRankUnitary}


def test_a_compiled_call_takes_euclidean_parameters():
    layer = OrthogonalLinear(4, 4)
    weight = geoopt.ManifoldParameter(torch.eye(4))
    call = torch.compile(
        lambda w, x: torch.func.functional_call(layer, {"weight": w}, (x,)),
        backend="eager",
        fullgraph=True,
    )
    assert_within(call(weight, torch.ones(4)), torch.ones(4) + layer.bias, 1e-6)
