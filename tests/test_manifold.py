import copy
import io
import math
import pickle

import geoopt
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_unitary, assert_within
from tests._gpu import no_waiting
from tests._matrices import (
    DTYPES,
    REAL_DTYPES,
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    cayley_reference,
    eps,
    exponential_reference,
    inner_reference,
    polar_reference,
    skew,
    tangent_at,
    turning,
    unitary,
)

dtypes = pytest.mark.parametrize("dtype", DTYPES)
ranks = pytest.mark.parametrize("k", [1, None])


# -- the value that a manifold is ----------------------------------------------------------


def variants():
    return [
        LowRankUnitary(),
        LowRankUnitary(1),
        LowRankUnitary(2),
        LowRankUnitary(None),
        LowRankUnitary(1, retraction="polar"),
        LowRankUnitary(1, sketch="lsi"),
        LowRankUnitary(1, sweep=0),
    ]


def test_the_defaults_are_tangent_steps_along_geodesics():
    manifold = LowRankUnitary()
    assert manifold == LowRankUnitary("auto", retraction="exponential", sketch="tangent", sweep=1)
    assert (manifold.name, manifold.ndim) == ("LowRankUnitary", 2)


def test_manifolds_are_equal_by_value_and_hash_alike():
    for i, one in enumerate(variants()):
        for j, other in enumerate(variants()):
            assert (one == other) == (i == j)
            assert (one != other) == (i != j)
            assert i != j or hash(one) == hash(other)
    assert len({*variants(), *variants()}) == len(variants())
    assert LowRankUnitary() != geoopt.Euclidean()


def test_parameters_accept_tensors_of_an_equal_manifold_only():
    tensor = LowRankUnitary(1).random(4, 4)
    assert geoopt.ManifoldParameter(tensor, manifold=LowRankUnitary(1)).manifold.k == 1
    with pytest.raises(ValueError, match="Manifolds do not match"):
        geoopt.ManifoldParameter(tensor, manifold=LowRankUnitary(2))


def test_the_representation_shows_rank_retraction_and_sketch():
    assert [repr(manifold) for manifold in variants()] == [
        "LowRankUnitary(k=auto, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=2, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=None, retraction=exponential, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=polar, sketch=tangent) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=lsi) manifold",
        "LowRankUnitary(k=1, retraction=exponential, sketch=tangent, sweep=0) manifold",
    ]


@pytest.mark.parametrize("manifold", variants(), ids=repr)
def test_copies_of_a_manifold_are_equal_to_it(manifold):
    for other in (
        copy.copy(manifold),
        copy.deepcopy(manifold),
        pickle.loads(pickle.dumps(manifold)),
    ):
        assert other == manifold
        x, u = unitary(4, 4), torch.randn(4, 4, dtype=torch.float64)
        assert_bit_equal(other.retr(x, u), manifold.retr(x, u))


def test_a_manifold_holds_no_tensors():
    # A parameter's manifold is no submodule: its tensors would be neither moved nor saved.
    manifold = LowRankUnitary()
    assert not list(manifold.parameters())
    assert not list(manifold.buffers())
    assert manifold.device is None
    assert manifold.dtype is None


class Model(torch.nn.Module):
    def __init__(self, k=1, dtype=torch.float32):
        super().__init__()
        manifold = LowRankUnitary(k)
        self.weight = geoopt.ManifoldParameter(
            manifold.random(6, 6, dtype=dtype), manifold=manifold
        )


@dtypes
def test_parameters_keep_their_manifold_through_copies_and_pickles(dtype):
    model = Model(k=2, dtype=dtype)
    file = io.BytesIO()
    torch.save(model.weight, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model).weight,
        pickle.loads(pickle.dumps(model)).weight,
        torch.load(file, weights_only=False),
    ):
        assert isinstance(other, geoopt.ManifoldParameter)
        assert other.manifold == LowRankUnitary(2)
        assert other.requires_grad
        assert_bit_equal(other.detach(), model.weight.detach())


@dtypes
def test_a_state_dict_goes_through_a_file_bit_for_bit(dtype):
    model, other = Model(dtype=dtype), Model(dtype=dtype)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_bit_equal(other.weight.detach(), model.weight.detach())
    assert other.weight.manifold == LowRankUnitary(1)


# -- points --------------------------------------------------------------------------------


@dtypes
def test_random_points_are_on_the_manifold_and_know_it(dtype):
    manifold = LowRankUnitary(2)
    for size in ((2, 3, 8, 8), ((2, 3, 8, 8),)):
        x = manifold.random(*size, dtype=dtype)
        assert isinstance(x, geoopt.ManifoldTensor)
        assert x.manifold is manifold
        assert x.shape == (2, 3, 8, 8)
        assert x.dtype == dtype
        assert_unitary(x)


def test_random_points_follow_the_default_dtype_and_the_seed():
    manifold = LowRankUnitary()
    torch.manual_seed(3)
    first = manifold.random(4, 4)
    torch.manual_seed(3)
    assert_bit_equal(manifold.random(4, 4), first)
    assert first.dtype == torch.get_default_dtype()
    assert manifold.random(4, 4, device="meta").is_meta


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_random_points_are_haar_distributed(dtype):
    # E|tr x|² = 1, E|x₁₁|² = 1/n and every mean zero, unlike plain QR; tests of the law itself
    # are with linalg.haar.
    count, n = 20_000, 3
    x = LowRankUnitary().random(count, n, n, dtype=dtype)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    for sample, mean in (
        (trace.real, 0.0),
        (trace.abs() ** 2, 1.0),
        (x[:, 0, 0].abs() ** 2, 1 / n),
        (x[:, 2, 2].real, 0.0),
        (torch.linalg.det(x).real, 0.0),
    ):
        assert (sample.mean() - mean).abs() < 4 * sample.std() / math.sqrt(count)


@dtypes
def test_the_origin_is_the_identity_in_memory_of_its_own(dtype):
    manifold = LowRankUnitary(2)
    x = manifold.origin(2, 3, 4, 4, dtype=dtype, seed=7)
    assert isinstance(x, geoopt.ManifoldTensor)
    assert x.manifold is manifold
    assert x.is_contiguous()
    assert_bit_equal(x.data, torch.eye(4, dtype=dtype).expand(2, 3, 4, 4))
    x.data[0, 0] = 0
    assert_bit_equal(x.data[0, 1], torch.eye(4, dtype=dtype))
    assert manifold.origin(4, 4).dtype == torch.get_default_dtype()


@dtypes
@ranks
def test_a_parameter_made_off_the_manifold_is_projected_by_proj(dtype, k):
    start = torch.randn(2, 6, 6, dtype=dtype)
    weight = geoopt.ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
    with torch.no_grad():
        assert weight.proj_() is weight
    assert_unitary(weight.detach())
    wide = torch.complex128 if dtype.is_complex else torch.float64
    condition = torch.linalg.cond(start).max().item()
    tolerance = 20 * condition * eps(dtype)
    assert_within(weight.detach(), polar_reference(start.to(wide)), tolerance)


@dtypes
@pytest.mark.parametrize("n", [2, 5, 64])
def test_projx_of_a_point_is_a_copy(dtype, n):
    # As the methods leave it, with the rounding of a few steps.
    manifold = LowRankUnitary()
    x = manifold.random(3, n, n, dtype=dtype).data
    for _ in range(3):
        projected = manifold.projx(x)
        assert_bit_equal(projected, x)
        assert projected.data_ptr() != x.data_ptr()
        assert projected.is_contiguous()
        x = manifold.retr(x, tangent_at(x, rank=2))


@dtypes
@pytest.mark.parametrize("ulps", [8, 1e3, 1e6])
def test_projx_takes_an_error_above_rounding_away(dtype, ulps):
    x = unitary(20, 20, dtype=dtype)
    off = x + ulps * eps(dtype) * torch.randn(20, 20, dtype=dtype)
    assert_unitary(LowRankUnitary().projx(off), ulps=8)


def test_projx_projects_the_whole_batch_if_one_of_it_is_off():
    x = unitary(3, 5, 5)
    x[1] *= 2
    assert_unitary(LowRankUnitary().projx(x))


@dtypes
def test_the_gradient_of_projx_adds_to_that_of_another_path(dtype):
    """As it does with geoopt's Stiefel, whose gradient it is for real matrices."""
    x = (2 * unitary(5, 5, dtype=dtype) + 0.1 * torch.randn(5, 5, dtype=dtype)).requires_grad_()
    target = torch.randn(5, 5, dtype=dtype)

    def gradient(manifold):
        loss = (manifold.projx(x) - target).abs().square().sum() + 1e-3 * x.abs().square().sum()
        return torch.autograd.grad(loss, x)[0]

    grad = gradient(LowRankUnitary())
    assert torch.linalg.matrix_norm(grad) > 1
    if not dtype.is_complex:
        assert_same_to_rounding(grad, gradient(geoopt.EuclideanStiefel()), ulps=500)


@dtypes
def test_the_gradient_of_projx_at_a_point_is_tangent(dtype):
    manifold = LowRankUnitary()
    x = unitary(3, 5, 5, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    (through,) = torch.autograd.grad(manifold.projx(x), x, grad)
    assert_same_to_rounding(through, manifold.proju(x.detach(), grad))


def test_projx_records_no_gradient_where_none_is_asked_for():
    manifold = LowRankUnitary()
    x = torch.randn(4, 4, requires_grad=True)
    assert manifold.projx(x).requires_grad
    assert not manifold.projx(x.detach()).requires_grad
    with torch.no_grad():
        assert not manifold.projx(x).requires_grad
    weight = geoopt.ManifoldParameter(manifold.projx(x), manifold=manifold)
    assert weight.is_leaf
    assert type(manifold.projx(weight)) is torch.Tensor


# -- the metric ----------------------------------------------------------------------------


@dtypes
def test_inner_is_the_real_part_of_the_trace(dtype):
    manifold = LowRankUnitary()
    x, u, v = torch.randn(3, 2, 3, 5, 5, dtype=dtype)
    inner = manifold.inner(x, u, v)
    assert inner.dtype == x.real.dtype
    assert inner.shape == (2, 3)
    assert_same_to_rounding(inner, inner_reference(u, v))
    assert_same_to_rounding(manifold.inner(x, v, u), inner)
    assert_same_to_rounding(manifold.inner(x, u), manifold.norm(x, u) ** 2)
    assert_same_to_rounding(manifold.norm(x, u), torch.linalg.matrix_norm(u))


@dtypes
def test_inner_keeps_dimensions_when_told_to(dtype):
    manifold = LowRankUnitary()
    x, u, v = torch.randn(3, 2, 3, 5, 5, dtype=dtype)
    for value in (
        manifold.inner(x, u, v, keepdim=True),
        manifold.inner(x, u, keepdim=True),
        manifold.component_inner(x, u, v),
        manifold.component_inner(x, u),
        manifold.norm(x, u, keepdim=True),
        manifold.dist(unitary(2, 3, 5, 5), unitary(2, 3, 5, 5), keepdim=True),
    ):
        assert value.shape == (2, 3, 1, 1)
    assert_bit_equal(manifold.component_inner(x, u, v).flatten(), manifold.inner(x, u, v).flatten())


@dtypes
def test_the_orthogonality_error_is_measured_without_a_gradient(dtype):
    manifold = LowRankUnitary()
    x = (2 * unitary(2, 3, 5, 5, dtype=dtype)).requires_grad_()
    error = manifold.orthogonality_error(x)
    assert not error.requires_grad
    assert error.dtype == x.real.dtype
    assert error.shape == (2, 3)
    assert_within(error, 3 * math.sqrt(5), 100 * eps(dtype))


# -- logarithms at their limits ------------------------------------------------------------


@dtypes
@ranks
def test_logmap_finds_half_turns(dtype, k):
    manifold = LowRankUnitary(k)
    x = unitary(4, 4, dtype=dtype)
    y = -x
    v = manifold.logmap(x, y)
    assert_within(manifold.norm(x, v) / (2 * math.pi), 1.0, 20 * eps(dtype))
    assert_within(manifold.dist(x, y) / (2 * math.pi), 1.0, 20 * eps(dtype))
    assert_within(manifold.expmap(x, v), y, 50 * eps(dtype))
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0]).diag().to(dtype) @ x
    assert_within(manifold.expmap(x, manifold.logmap(x, y)), y, 50 * eps(dtype))


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
@dtypes
def test_logmap_and_expmap_meet_near_half_a_turn(dtype, gap):
    manifold = LowRankUnitary()
    x = unitary(7, 7, dtype=dtype)
    y = turning([math.pi - gap, math.pi - 2 * gap, 1.0], 7, dtype=dtype) @ x
    assert_within(manifold.expmap(x, manifold.logmap(x, y)), y, 100 * eps(dtype))


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_no_path_joins_opposite_determinants(dtype):
    manifold = LowRankUnitary()
    x, y = unitary(2, 3, 4, 4, dtype=dtype)
    y[1, 0] *= -1
    assert manifold.dist(x, y).isinf().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"determinants differ in sign; negate one column"):
        manifold.logmap(x, y)
    y[1, 0] *= -1
    assert manifold.logmap(x, y).isfinite().all()


# -- checks --------------------------------------------------------------------------------


def test_check_point_on_manifold_gives_its_reason():
    manifold = LowRankUnitary()
    x = unitary(2, 4, 4)
    assert manifold.check_point_on_manifold(x)
    assert manifold.check_point_on_manifold(x, explain=True) == (True, None)
    ok, reason = manifold.check_point_on_manifold(1.01 * x, explain=True)
    assert not ok
    assert reason == "`xᴴx != I` by 2.0e-02 with atol=1e-05, rtol=1e-05"
    assert manifold.check_point_on_manifold(1.01 * x, atol=0.1)
    manifold.assert_check_point_on_manifold(x)
    with pytest.raises(
        ValueError, match=r"not lying on LowRankUnitary manifold.\nerror: `xᴴx != I`"
    ):
        manifold.assert_check_point_on_manifold(1.01 * x)


@dtypes
def test_check_vector_on_tangent_gives_its_reason(dtype):
    manifold = LowRankUnitary()
    x = unitary(2, 4, 4, dtype=dtype)
    u = tangent_at(x)
    assert manifold.check_vector_on_tangent(x, u)
    ok, reason = manifold.check_vector_on_tangent(x, u + 0.5 * x, explain=True)
    assert not ok
    assert reason == "`xᴴu + uᴴx != 0` by 1.0e+00 with atol=1e-05, rtol=1e-05"
    assert not manifold.check_vector_on_tangent(2 * x, u)
    assert manifold.check_vector_on_tangent(2 * x, u, ok_point=True)
    with pytest.raises(ValueError, match="not lying on tangent space"):
        manifold.assert_check_vector_on_tangent(x, x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float16, torch.bool])
def test_no_check_accepts_a_point_of_a_dtype_that_no_method_takes(dtype):
    manifold, eye = LowRankUnitary(), torch.eye(4).to(dtype)
    for check in (manifold.check_point, manifold.check_point_on_manifold):
        ok, reason = check(eye, explain=True)
        assert not ok
        assert "float32" in reason
        assert not check(eye)


def test_checks_of_shape_give_their_reason():
    manifold = LowRankUnitary(3)
    for check in (manifold.check_point, manifold.check_vector, manifold.check_point_on_manifold):
        assert check(torch.eye(6))
        ok, reason = check(torch.ones(6, 7), explain=True)
        assert not ok
        assert "must have shape (*, n, n), got (6, 7)" in reason
        ok, reason = check(torch.eye(5), explain=True)
        assert not ok
        assert "`k` must satisfy 1 <= k <= n // 2 = 2, got 3" in reason


# -- parameters ----------------------------------------------------------------------------


@dtypes
@ranks
def test_the_methods_of_a_parameter_are_those_of_its_manifold(dtype, k):
    manifold = LowRankUnitary(k)
    x, y = unitary(2, 3, 6, 6, dtype=dtype)
    u, v = tangent_at(x, rank=2), tangent_at(x)
    p = geoopt.ManifoldParameter(x, manifold=manifold)
    for one, other in (
        (p.retr(u), manifold.retr(x, u)),
        (p.expmap(u), manifold.expmap(x, u)),
        (p.logmap(y), manifold.logmap(x, y)),
        (p.proju(v), manifold.proju(x, v)),
        (p.transp(y, v), manifold.transp(x, y, v)),
        (p.inner(u, v), manifold.inner(x, u, v)),
        (p.dist(y, p="g"), manifold.dist(x, y)),
        (p.dist(y), torch.dist(x, y)),
        (p.transp_follow_retr(u, v), manifold.transp_follow_retr(x, u, v)),
        (p.transp_follow_expmap(u, v), manifold.transp_follow_expmap(x, u, v)),
        *zip(p.retr_transp(u, v), manifold.retr_transp(x, u, v), strict=True),
        *zip(p.expmap_transp(u, v), manifold.expmap_transp(x, u, v), strict=True),
    ):
        assert one.is_contiguous()
        assert_bit_equal(one.detach(), other)
    assert_bit_equal(p.unpack_tensor().detach(), x)


# -- layouts, devices and precisions -------------------------------------------------------

METHODS = {
    "projx": lambda m, x, y, u, v: m.projx(y * 1.5),
    "projx of a point": lambda m, x, y, u, v: m.projx(x),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: m.retr_transp(x, u, v),
    "expmap_transp": lambda m, x, y, u, v: m.expmap_transp(x, u, v),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "dist": lambda m, x, y, u, v: m.dist(x, y),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v),
    "norm": lambda m, x, y, u, v: m.norm(x, u),
}
methods = pytest.mark.parametrize("method", METHODS)
LOW_RANK = ("egrad2rgrad", "retr", "retr_transp", "transp_follow_retr")


def arguments(*batch, n=6, dtype=torch.float32):
    x, y = unitary(2, *batch, n, n, dtype=dtype)
    u, v = torch.randn(2, *batch, n, n, dtype=dtype)
    return x, y, u, v


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


@methods
@ranks
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_strides_do_not_matter_and_results_are_contiguous(dtype, k, method):
    manifold, plain = LowRankUnitary(k), arguments(2, dtype=dtype)
    strided = [t.mT.contiguous().mT for t in plain]
    every_other = [t.repeat_interleave(2, -1)[..., ::2] for t in plain]
    expected = tensors(METHODS[method](manifold, *plain))
    for layout in (strided, every_other):
        for one, other in zip(tensors(METHODS[method](manifold, *layout)), expected, strict=True):
            assert one.is_contiguous()
            assert_same_to_rounding(one, other, ulps=200)


@methods
@ranks
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_autocast_changes_no_bit(dtype, half, k, method):
    manifold, values = LowRankUnitary(k), arguments(2, dtype=dtype)
    expected = tensors(METHODS[method](manifold, *values))
    with torch.autocast("cpu", dtype=half):
        result = tensors(METHODS[method](manifold, *values))
    for one, other in zip(result, expected, strict=True):
        assert_bit_equal(one, other)


@methods
@ranks
def test_results_share_no_memory_with_arguments_and_arguments_keep_their_bits(k, method):
    values = arguments(2)
    before = [t.clone() for t in values]
    for result in tensors(METHODS[method](LowRankUnitary(k), *values)):
        result.fill_(7)
    for value, copied in zip(values, before, strict=True):
        assert_bit_equal(value, copied)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@methods
def test_the_smallest_matrices_work(dtype, n, method):
    for k in (None,) if n == 1 else (1, None):
        for result in tensors(METHODS[method](LowRankUnitary(k), *arguments(2, n=n, dtype=dtype))):
            assert result.isfinite().all()


@methods
@ranks
def test_an_empty_batch_gives_an_empty_batch(k, method):
    for result in tensors(METHODS[method](LowRankUnitary(k), *arguments(0))):
        assert result.numel() == 0


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_fake_tensors_pass_through_steps(retraction, sketch, method):
    # Anything that read a value would raise here.
    manifold = LowRankUnitary(2, retraction=retraction, sketch=sketch)
    with FakeTensorMode():
        for result in tensors(METHODS[method](manifold, *torch.empty(4, 3, 64, 64))):
            assert result.shape == (3, 64, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_steps_on_a_gpu_equal_those_on_a_cpu_and_wait_for_nothing(retraction, sketch, method):
    manifold = LowRankUnitary(2, retraction=retraction, sketch=sketch)
    values = arguments(3, n=32, dtype=torch.float64)
    values[2].copy_(tangent_at(values[0], rank=4))
    expected = tensors(METHODS[method](manifold, *values))
    values = [t.cuda() for t in values]
    METHODS[method](manifold, *values)  # the first call may allocate
    with no_waiting():
        result = tensors(METHODS[method](manifold, *values))
    for one, other in zip(result, expected, strict=True):
        assert_within(one.cpu(), other, 1e-11)


# -- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_retr_without_truncation_is_differentiable(retraction, dtype):
    manifold = LowRankUnitary(None, retraction=retraction)
    x, u = unitary(4, 4, dtype=dtype), skew(4, 4, dtype=dtype)
    assert torch.autograd.gradcheck(manifold.retr, (x.requires_grad_(), u.requires_grad_()))


def assert_slope_is_right_or_absent(function, direction, scale=1e-6):
    """The derivative at zero is that of finite differences, unless there is none."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-1, 1, direction.numel(), dtype=direction.dtype).view_as(direction)

    def value(t):
        return (weights.conj() * function(t * direction)).real.sum()

    at_zero = value(t)
    if at_zero.requires_grad:
        (slope,) = torch.autograd.grad(at_zero, t)
        h = torch.tensor(scale, dtype=torch.float64)
        difference = (value(h) - value(-h)) / (2 * h)
        assert_within(slope, difference.item(), 1e-7)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("rank", [2, 6])
def test_retr_with_truncation_has_the_right_slope_or_none(rank, retraction, dtype):
    # At rank 2k the rows that a sketch orthonormalizes are dependent.
    manifold = LowRankUnitary(1, retraction=retraction)
    x = unitary(6, 6, dtype=dtype)
    u = tangent_at(x, rank=rank)
    assert_slope_is_right_or_absent(lambda du: manifold.retr(x, u + du), u)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_logmap_is_differentiable_once_along_the_manifold(dtype, norm):
    manifold = LowRankUnitary()
    x = unitary(5, 5, dtype=dtype)
    y = exponential_reference(skew(5, 5, norm=norm, dtype=dtype)) @ x
    turns = skew(2, 3, 5, 5, dtype=dtype)

    def log(s, t):
        near_x, near_y = (
            cayley_reference((r[:, None, None] * turn).sum(0)) @ p
            for r, turn, p in zip((s, t), turns, (x, y), strict=True)
        )
        value = manifold.logmap(near_x, near_y)
        return torch.view_as_real(value) if value.is_complex() else value

    origin = [torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(log, origin)
    (grad,) = torch.autograd.grad(log(*origin).sum(), origin[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"`logmap` can be differentiated once.*differences"):
        torch.autograd.grad(grad.sum(), origin[0])


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("name", ["expmap", "proju", "inner", "transp_follow_expmap"])
def test_exact_methods_are_differentiable(name, dtype):
    method = getattr(LowRankUnitary(), name)
    x, u, v = unitary(4, 4, dtype=dtype), skew(4, 4, dtype=dtype), skew(4, 4, dtype=dtype)
    count = 3 if name in ("inner", "transp_follow_expmap") else 2
    inputs = [t.requires_grad_() for t in (x, u, v)][:count]
    assert torch.autograd.gradcheck(method, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_descent_along_the_gradient_of_the_distance_ends_at_the_other_point(dtype):
    manifold = LowRankUnitary(None)
    y = unitary(2, 5, 5, dtype=dtype)
    x = geoopt.ManifoldParameter(manifold.expmap(y, tangent_at(y, norm=1.5)), manifold=manifold)
    (grad,) = torch.autograd.grad(manifold.dist(x, y).sum(), x)
    # The gradient has length one and points along the geodesic that joins the points.
    ends = manifold.expmap(x.detach(), -1.5 * manifold.egrad2rgrad(x.detach(), grad))
    assert_within(ends, y, 100 * eps(dtype))


# -- what the optimizers use ---------------------------------------------------------------


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [2, None])
def test_each_matrix_of_a_batch_may_take_a_step_of_its_own_length(retraction, k):
    manifold = LowRankUnitary(k, retraction=retraction)
    x, d = unitary(3, 6, 6), torch.randn(3, 6, 6, dtype=torch.float64)
    sketched = manifold.sketch_direction(x, d, torch.zeros(3).long())
    lengths = torch.tensor([0.0, -0.1, 3.0], dtype=torch.float64)
    together = manifold.rotation(sketched, lengths[:, None, None], x.dtype)(x)
    for i, length in enumerate(lengths.tolist()):
        alone = manifold.rotation(sketched, length, x.dtype)(x)[i]
        assert_bit_equal(together[i], alone)
