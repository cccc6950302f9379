"""Parameters and gradients along which no step is taken: it is refused, and changes nothing."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    feed,
    gradients,
    unitary_parameter,
)
from ._refusals import around, assert_refused, company


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


@pytest.mark.parametrize("has_grad", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_point_that_cannot_be_projected_is_refused_before_the_step(kind, has_grad):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1, stabilize=2)
    culprit.grad = torch.randn_like(culprit) if has_grad else None
    optimizer.step()
    with torch.no_grad():
        culprit[0, 0] = torch.nan
        for p in optimizer.param_groups[0]["params"][1:]:
            p.mul_(1.01)
    match = r"\(6, 6\) cannot be projected, as `stabilize` asks: it must be finite.*checkpoint"
    assert_refused(optimizer, ValueError, match)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.stabilize()
    before.assert_unchanged()


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
    assert_refused(
        optimizer, ValueError, r"\(6,\) cannot be .*: it must have shape \(\*, n, n\), got"
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_module_cast_to_half_precision_is_refused(kind):
    module = torch.nn.Linear(6, 6)
    module.weight = unitary_parameter(6, 6)
    optimizer = kind(module.named_parameters(), lr=0.1)
    module(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    module.to(torch.bfloat16)
    assert isinstance(module.weight.manifold, LowRankUnitary)
    words = (
        r"Parameter `weight` of shape \(6, 6\) cannot be on the LowRankUnitary\(.*: it must have "
        "one of the dtypes float32.*got torch.bfloat16"
    )
    assert_refused(optimizer, TypeError, words)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize("has_stepped", [False, True])
@pytest.mark.parametrize(
    "shared",
    [
        torch.eye(4).expand(3, 4, 4),
        torch.eye(4)[:, :1].expand(4, 4),
        torch.eye(8).as_strided((4, 4), (1, 1)),
    ],
    ids=["matrices", "columns", "windows"],
)
def test_entries_that_share_memory_are_refused(shared, has_stepped, sweep, kind):
    manifold = LowRankUnitary(sweep=sweep)
    culprit = geoopt.ManifoldParameter(manifold.random(*shared.shape), manifold=manifold)
    optimizer = kind([{"params": company()}, {"params": [culprit]}], lr=0.1)
    if has_stepped:
        culprit.grad = torch.randn_like(culprit)
        optimizer.step()
    culprit.data = shared
    culprit.grad = torch.randn(shared.shape)
    assert_refused(optimizer, ValueError, r"must have memory of its own.*strides \(.*contiguous")
    culprit.data = manifold.random(*shared.shape)
    optimizer.step()


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


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_converted_after_its_first_step_is_refused(kind):
    p, q = unitary_parameter(6, 6), unitary_parameter(6, 6)
    optimizer = kind([q, p])
    p.grad, q.grad = torch.randn(6, 6), torch.randn(6, 6)
    optimizer.step()
    p.data = p.data.double()
    p.grad = torch.randn(6, 6, dtype=torch.float64)
    before = q.detach().clone()
    with pytest.raises(TypeError, match=r"must have its precision, torch.float64.*make a new"):
        optimizer.step()
    assert torch.equal(q, before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6)])
@pytest.mark.parametrize("is_plain", [True, False])
def test_a_gradient_from_before_the_parameter_got_another_shape_is_refused(is_plain, shape, kind):
    # torch checks the shape when a gradient is set, and then no more.
    values = LowRankUnitary().random(1, 4, 4).as_subclass(torch.Tensor)
    culprit = torch.nn.Parameter(values) if is_plain else unitary_parameter(1, 4, 4)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    culprit.grad = torch.randn_like(culprit)
    culprit.data = LowRankUnitary().random(*shape).as_subclass(torch.Tensor)
    assert_refused(optimizer, ValueError, r"`grad` of .* shape, got \(1, 4, 4\).*`zero_grad\(\)`")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_that_a_parameter_has_left_on_another_device_is_refused(kind):
    culprit = unitary_parameter(6, 6)
    optimizer = kind(around(culprit, company(), company()), lr=0.1)
    culprit.grad = torch.randn_like(culprit)
    optimizer.step()
    state = optimizer.state[culprit]
    optimizer.state[culprit] = {name: value.to("meta") for name, value in state.items()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=r"`skipped` .* on its device, cpu, got meta.*load_state"):
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p, value)
