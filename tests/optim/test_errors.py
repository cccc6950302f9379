"""What is refused, with which words, and that nothing has changed then."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    bystander,
    feed,
    gradients,
    unitary_parameter,
)


def company(dtype=torch.float32):
    """Parameters of every kind, with gradients, that a refused step must not touch."""
    sphere = geoopt.Sphere()
    params = [
        unitary_parameter(6, 6, dtype=dtype),
        torch.nn.Parameter(torch.randn(3)),
        geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere),
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def assert_refused(optimizer, error, match):
    """A step raises, twice the same, and parameters, gradients and state stay."""
    before = Snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(error, match=match):
            optimizer.step()
        before.assert_unchanged()


def around(culprit, front, back):
    """Groups with innocent parameters before, beside and after the culprit."""
    return [{"params": front}, {"params": [*back[:1], culprit]}, {"params": back[1:]}]


# -- off the manifold ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("experienced", [False, True])
def test_a_first_step_from_off_the_manifold_is_refused(experienced, kind, dtype):
    culprit = geoopt.ManifoldParameter(torch.randn(6, 6, dtype=dtype), manifold=LowRankUnitary())
    optimizer = kind(around(culprit, company(dtype), company(dtype)), lr=0.1)
    if experienced:
        optimizer.step()
    culprit.grad = torch.randn_like(culprit)
    assert_refused(optimizer, ValueError, r"\(6, 6\).*xᴴx = I.*`proj_\(\)`.*`manifold.projx\(x\)`")
    with torch.no_grad():
        culprit.proj_()
    before = culprit.detach().clone()
    optimizer.step()
    assert not torch.equal(culprit, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0, 1.001])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_bad_matrix_in_a_batch_is_enough(kind, bad):
    culprit = unitary_parameter(4, 6, 6)
    with torch.no_grad():
        culprit[2].mul_(bad)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    culprit.grad = torch.randn_like(culprit)
    assert_refused(optimizer, ValueError, r"A parameter of shape \(4, 6, 6\) on LowRankUnitary")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("n", [4, 64, 256])
def test_rounding_in_the_data_is_no_reason_to_refuse(n, kind):
    p = unitary_parameter(n, n)
    with torch.no_grad():
        p.add_(torch.randn(n, n), alpha=1e-6 / n**0.5)
    before = p.detach().clone()
    feed(kind([p], lr=0.1), p, gradients(p, 1))
    assert not torch.equal(p, before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rank_too_large_for_the_matrix_is_refused_by_the_step_too(kind):
    culprit = unitary_parameter(6, 6, k=2)
    culprit.manifold = LowRankUnitary(k=4)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    culprit.grad = torch.randn_like(culprit)
    assert_refused(optimizer, ValueError, "`k` must satisfy 1 <= k <= n // 2 = 3, got 4")


# -- gradients and dtypes --------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("experienced", [False, True])
@pytest.mark.parametrize("place", ["LowRankUnitary", "Sphere"])
def test_a_sparse_gradient_on_a_manifold_is_refused(place, experienced, kind):
    if place == "Sphere":
        culprit = geoopt.ManifoldParameter(torch.eye(6), manifold=geoopt.Sphere())
    else:
        culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    if experienced:
        feed(optimizer, culprit, [torch.randn(6, 6)])
    culprit.grad = torch.eye(6).to_sparse()
    assert_refused(optimizer, TypeError, r"`grad` of a parameter of shape \(6, 6\) must be dense")


def test_a_sparse_gradient_of_a_plain_parameter_is_refused_by_adam():
    culprit = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ProjUNNRiemannianAdam(around(culprit, company(), company()))
    culprit.grad = torch.ones(4, 3).to_sparse()
    assert_refused(optimizer, TypeError, "must be dense, got a sparse gradient; use `sparse=False`")


def test_a_sparse_gradient_that_torch_cannot_decay_leaves_the_others_alone():
    culprit = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ProjUNNRiemannianSGD(
        around(culprit, company(), company()), lr=0.1, weight_decay=0.1
    )
    culprit.grad = torch.ones(4, 3).to_sparse()
    assert_refused(optimizer, (TypeError, RuntimeError), "sparse")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("experienced", [False, True])
def test_a_parameter_cast_to_half_precision_is_refused(experienced, dtype, kind):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    if experienced:
        feed(optimizer, culprit, [torch.randn(6, 6)])
    culprit.grad = None
    culprit.data = culprit.data.to(dtype)
    culprit.grad = torch.randn(6, 6).to(dtype)
    assert_refused(optimizer, TypeError, f"got {dtype}; half precision cannot hold orthogonality")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rank_that_became_too_large_is_refused(kind):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    feed(optimizer, culprit, [torch.randn(6, 6)])
    culprit.grad = torch.randn(6, 6)
    culprit.manifold = LowRankUnitary(4)
    assert_refused(optimizer, ValueError, "`k` must satisfy 1 <= k <= n // 2 = 3, got 4")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_is_no_matrix_any_more_is_refused(kind):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    feed(optimizer, culprit, [torch.randn(6, 6)])
    culprit.grad = None
    culprit.data = torch.zeros(6)
    culprit.grad = torch.zeros(6)
    assert_refused(optimizer, ValueError, r"`x` must have shape \(\*, n, n\), got \(6,\)")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_module_cast_to_half_precision_is_refused(kind):
    module = torch.nn.Linear(6, 6)
    module.weight = unitary_parameter(6, 6)
    optimizer = kind(module.parameters(), lr=0.1)
    module(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    module.to(torch.bfloat16)
    assert isinstance(module.weight.manifold, LowRankUnitary)
    assert_refused(optimizer, TypeError, "`x` must have one of the dtypes float32.*got torch.bfl")


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch takes no gradient of another dtype"
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_of_another_dtype_leaves_the_others_alone(kind):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    culprit.grad_dtype = None
    culprit.grad = torch.randn(6, 6).double()
    assert_refused(optimizer, (TypeError, RuntimeError), "dtype")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_lost_its_manifold_is_refused(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([*company(), p], lr=0.1)
    feed(optimizer, p, gradients(p, 1))
    # What torch does to the parameters of modules that know of no manifold.
    torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().double()))
    assert not hasattr(p, "manifold")
    p.grad = torch.randn_like(p)
    assert_refused(
        optimizer,
        RuntimeError,
        r"shape \(6, 6\) was on LowRankUnitary or LowRankStiefel and no longer is.*"
        "`geoopt.ManifoldParameter`",
    )


# -- hyperparameters -------------------------------------------------------------------

SHARED = [
    ({"lr": -0.1}, r"`lr` must lie in \[0.0, inf\), got -0.1"),
    ({"lr": float("nan")}, r"`lr` must lie in \[0.0, inf\), got nan"),
    ({"lr": float("inf")}, r"`lr` must lie in \[0.0, inf\), got inf"),
    ({"weight_decay": -1e-3}, r"`weight_decay` must lie in \[0.0, inf\), got -0.001"),
    ({"compile": 1}, "`compile` must be True or False, got 1"),
    ({"stabilize": 0}, "`stabilize` must be None or a positive integer, got 0"),
    ({"stabilize": -2}, "`stabilize` must be None or a positive integer, got -2"),
    ({"stabilize": 1.5}, "`stabilize` must be None or a positive integer, got 1.5"),
    ({"stabilize": "often"}, "`stabilize` must be None or a positive integer, got 'often'"),
]
OF_SGD = [
    ({"momentum": -0.5}, r"`momentum` must lie in \[0.0, inf\), got -0.5"),
    ({"nesterov": True}, "`nesterov` needs momentum > 0 and dampening = 0, got momentum=0"),
    (
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        "`nesterov` needs .* got momentum=0.9, dampening=0.1",
    ),
    ({"error_feedback": 1.0}, r"`error_feedback` must lie in \[0.0, 1.0\), got 1.0"),
    ({"error_feedback": -0.1}, r"`error_feedback` must lie in \[0.0, 1.0\), got -0.1"),
    (
        {"error_feedback": 0.9, "momentum": 0.9, "nesterov": True},
        "`error_feedback` needs .* got nesterov=True, dampening=0.0; leave `error_feedback` at N",
    ),
    (
        {"error_feedback": 0.9, "momentum": 0.9, "dampening": 0.5},
        "`error_feedback` needs .* got nesterov=False, dampening=0.5",
    ),
]
OF_ADAM = [
    ({"betas": (-0.1, 0.9)}, r"`betas\[0\]` must lie in \[0.0, 1.0\), got -0.1"),
    ({"betas": (1.0, 0.9)}, r"`betas\[0\]` must lie in \[0.0, 1.0\), got 1.0"),
    ({"betas": (0.9, 1.0)}, r"`betas\[1\]` must lie in \[0.0, 1.0\), got 1.0"),
    ({"betas": (0.9, float("nan"))}, r"`betas\[1\]` must lie in \[0.0, 1.0\), got nan"),
    ({"betas": (0.9,)}, "`betas`"),
    ({"betas": (0.9, 0.99, 0.999)}, "`betas`"),
    ({"eps": -1e-8}, r"`eps` must lie in \[0.0, inf\), got -1e-08"),
    (
        {"second_moment": "rowwise"},
        "`second_moment` must be 'elementwise', 'scalar' or 'mean', got 'rowwise'",
    ),
]
BAD = [
    (kind, options, match)
    for kind, own in ((ProjUNNRiemannianSGD, OF_SGD), (ProjUNNRiemannianAdam, OF_ADAM))
    for options, match in SHARED + own
]


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_bad_hyperparameter_is_refused_at_once(kind, options, match):
    with pytest.raises(ValueError, match=match):
        kind([bystander()], **options)


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_bad_hyperparameter_of_one_group_is_refused_at_once(kind, options, match):
    with pytest.raises(ValueError, match=match):
        kind([{"params": [bystander()]}, {"params": [bystander()], **options}])


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_group_with_a_bad_hyperparameter_is_not_added(kind, options, match):
    optimizer = kind([bystander()])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [bystander()], **options})
    assert len(optimizer.param_groups) == 1
    before.assert_unchanged()


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_hyperparameter_that_turns_bad_is_refused_by_the_step(kind, options, match):
    params = company()
    optimizer = kind([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.step()
    optimizer.param_groups[1].update(options)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p, value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [True, False, None])
def test_an_option_of_torch_that_is_not_supported_is_no_keyword(value, kind):
    match = "does not support `differentiable`; remove it. Supported are lr"
    with pytest.raises(TypeError, match=match):
        kind([bystander()], differentiable=value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_option_of_torch_that_is_not_supported_is_refused_in_a_group(kind):
    optimizer = kind([bystander()])
    before = Snapshot(optimizer)
    match = f"{kind.__name__} does not support `differentiable`; remove it"
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [bystander()], "differentiable": True})
    before.assert_unchanged()
    with pytest.raises(ValueError, match=match):
        kind([{"params": [bystander()], "differentiable": True}])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["momentun", "k", "retraction", "differentiable"])
def test_an_unknown_keyword_is_refused(name, kind):
    with pytest.raises(TypeError, match=f"{kind.__name__} does not support `{name}`"):
        kind([bystander()], **{name: 1})


def test_an_option_of_the_other_optimizer_is_refused():
    with pytest.raises(TypeError, match="does not support `betas`"):
        ProjUNNRiemannianSGD([bystander()], betas=(0.9, 0.99))
    with pytest.raises(TypeError, match="does not support `momentum`"):
        ProjUNNRiemannianAdam([bystander()], momentum=0.9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torchs_own_refusals_are_passed_on(kind):
    p = bystander()
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([])
    with pytest.raises(ValueError, match="non-leaf"):
        kind([p * 2])
    optimizer = kind([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


# -- numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1e-3", None, True, 1j])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_learning_rate_that_is_no_number_is_refused(kind, value):
    with pytest.raises(TypeError, match=r"`lr` must be a number, got "):
        kind([unitary_parameter(6, 6)], lr=value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_tensor_of_several_learning_rates_is_refused(kind):
    with pytest.raises(ValueError, match=r"`lr` must be one number, got a tensor of 2"):
        kind([unitary_parameter(6, 6)], lr=torch.tensor([1e-2, 1e-1]))


@pytest.mark.parametrize("betas", [None, 0.9, (0.9,), (0.9, 0.99, 0.999)])
def test_betas_that_are_no_pair_are_refused(betas):
    with pytest.raises(ValueError, match=r"`betas` must be a pair of numbers, got "):
        ProjUNNRiemannianAdam([unitary_parameter(6, 6)], betas=betas)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_converted_after_its_first_step_is_refused(kind):
    p, q = unitary_parameter(6, 6), unitary_parameter(6, 6)
    optimizer = kind([q, p])
    p.grad, q.grad = torch.randn(6, 6), torch.randn(6, 6)
    optimizer.step()
    p.data = p.data.double()
    p.grad = torch.randn(6, 6, dtype=torch.float64)
    before = q.detach().clone()
    with pytest.raises(TypeError, match=r"must have its precision, torch.float64.*rebuild"):
        optimizer.step()
    assert torch.equal(q, before)
