"""What is told of a gradient: which share a rank keeps, how far a step would turn."""

import math

import geoopt
import pytest
import torch

import geoopt_projunn
from geoopt_projunn import LowRankStiefel, LowRankUnitary, diagnose, kept_fraction
from tests._asserts import assert_bit_equal
from tests._matrices import DTYPES, hermitian, inner_reference, skewh, tangent_at, unitary

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def on(manifold, x):
    return geoopt.ManifoldParameter(x.clone(), manifold=manifold)


@dtypes
def test_a_rank_keeps_what_its_sketch_projects_on(dtype):
    """The share is the squared length of egrad2rgrad's result, up to the choice of vectors."""
    x, d = unitary(40, 40, dtype=dtype), torch.randn(40, 40, dtype=dtype)
    shares = kept_fraction(on(LowRankUnitary(1), x), d, ks=(1, 4, 10, 20))
    tangent = skewh(d @ x.mH) @ x
    for k, share in shares.items():
        kept = LowRankUnitary(k).egrad2rgrad(x, d)
        expected = inner_reference(kept, kept) / inner_reference(tangent, tangent)
        assert share == pytest.approx(float(expected), rel=0.4)
    assert list(shares) == [1, 4, 10, 20]
    assert list(shares.values()) == sorted(shares.values())


@pytest.mark.parametrize("k", [2, 4])
@dtypes
def test_a_gradient_of_low_rank_is_kept_whole_and_half_of_it_by_half_the_rank(dtype, k):
    x = unitary(3, 32, 32, dtype=dtype)
    shares = kept_fraction(on(LowRankUnitary(1), x), tangent_at(x, rank=k), ks=(k,))
    assert shares[k] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(3, 12, 5), (5, 12), (12, 5)])
def test_rectangles_are_measured_by_their_generators(shape):
    manifold = LowRankStiefel(2)
    x = manifold.random(*shape, dtype=torch.float64)
    d = torch.randn(shape, dtype=torch.float64)
    thin = d[..., :, :2] @ d[..., :2, :]
    # Of a direction of rank 2 the generator has rank 4.
    assert kept_fraction(on(manifold, x), thin, ks=(4,))[4] == pytest.approx(1.0, abs=1e-9)
    assert 0 < kept_fraction(on(manifold, x), d, ks=(1,))[1] < 0.9


def test_a_plain_tensor_is_taken_for_a_unitary_matrix():
    x, d = unitary(16, 16), torch.randn(16, 16, dtype=torch.float64)
    assert kept_fraction(x, d) == kept_fraction(on(LowRankUnitary(1), x), d)
    assert list(kept_fraction(x, d)) == [1, 2, 4, 8]


@dtypes
def test_without_a_tangent_part_there_is_no_share(dtype):
    x = unitary(16, 16, dtype=dtype)
    normal = hermitian(torch.randn(16, 16, dtype=dtype)) @ x
    for d in (normal, torch.zeros_like(normal)):
        assert all(math.isnan(share) for share in kept_fraction(x, d).values())


@pytest.mark.parametrize(
    ("ks", "error", "match"),
    [
        ((0,), ValueError, r"`ks\[0\]` must be at least 1, got 0; pass ranks"),
        ((1, 1.5), TypeError, r"`ks\[1\]` must be an integer, got 1.5; pass ranks"),
        ((None,), TypeError, r"`ks\[0\]` must be an integer, got None"),
        (("auto",), TypeError, r"`ks\[0\]` must be an integer, got 'auto'"),
    ],
)
def test_ranks_that_are_none_are_refused(ks, error, match):
    with pytest.raises(error, match=match):
        kept_fraction(unitary(8, 8), torch.randn(8, 8, dtype=torch.float64), ks=ks)


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`grad` must have the shape and dtype of `x`.*\(8, 7\)"):
        kept_fraction(unitary(8, 8), torch.randn(8, 7, dtype=torch.float64))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = on(LowRankUnitary(4), unitary(24, 24))
        self.second = on(LowRankUnitary(None), unitary(2, 8, 8))
        self.unused = on(LowRankUnitary(1), unitary(6, 6))
        self.plain = torch.nn.Parameter(torch.randn(3))


def test_diagnose_tells_what_a_step_of_each_parameter_does():
    model = Model()
    model.first.grad = tangent_at(model.first.detach(), rank=2, norm=3.0)
    model.second.grad = torch.randn(2, 8, 8, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    first, second, unused = diagnose(model, lr=0.1)
    for p, value in zip(model.parameters(), before, strict=True):
        assert_bit_equal(p.detach(), value)

    assert (first.name, first.shape, first.k) == ("first", (24, 24), 4)
    assert first.kept == pytest.approx(1.0)
    # A generator of norm 3, all of it in 2k = 8 angles.
    assert first.angle == pytest.approx(0.1 * 3 / math.sqrt(8))
    assert first.k_for_half == 1
    assert first.orthogonality_error < 1e-12

    optimizer = geoopt_projunn.ProjUNNRiemannianSGD([model.second], lr=0.1)
    start = model.second.detach().clone()
    optimizer.step()
    turned = torch.linalg.eigvals(model.second.detach() @ start.mT).angle()
    assert second.angle == pytest.approx(float(turned.square().mean().sqrt()), rel=1e-6)
    assert second.kept == pytest.approx(1.0)
    assert second.k_for_half in (1, 2)

    model.second.grad = hermitian(torch.randn_like(model.second)) @ model.second.detach()
    normal = diagnose(model, lr=0.1)[1]
    assert math.isnan(normal.kept)
    assert math.isnan(normal.angle)

    assert unused.k == 1
    assert math.isnan(unused.kept)
    assert math.isnan(unused.angle)
    assert unused.k_for_half is None
    assert [one.note for one in (first, second, normal, unused)] == [
        "",
        "",
        "no tangent gradient",
        "no gradient",
    ]


def spoilt(model, value):
    model.first.grad = torch.randn(24, 24, dtype=torch.float64)
    model.second.grad = torch.randn(2, 8, 8, dtype=torch.float64)
    model.second.grad[1, 2, 3] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_told_from_one_without_a_tangent_part(value):
    model = Model()
    spoilt(model, value)
    sound, second, _ = diagnose(model)
    assert (sound.note, second.note) == ("", "gradient not finite")
    assert math.isnan(second.kept)
    assert math.isnan(second.angle)
    assert second.k_for_half is None
    assert str(diagnose(model)).splitlines()[2].endswith("gradient not finite")
    assert all(
        math.isnan(share) for share in kept_fraction(model.second, model.second.grad).values()
    )


def test_a_parameter_that_is_not_finite_is_named():
    model = Model()
    spoilt(model, 1.0)
    with torch.no_grad():
        model.second[0, 0, 0] = math.nan
    assert [one.note for one in diagnose(model)] == ["", "parameter not finite", "no gradient"]


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_share_does_not_depend_on_the_size_of_a_gradient(size):
    """In float32, where the squares are 0 or infinite."""
    model = torch.nn.Module()
    model.weight = on(LowRankUnitary(2), unitary(16, 16, dtype=torch.float32))
    grad = torch.randn(16, 16)
    told = []
    for scale in (1.0, size):
        model.weight.grad = grad * scale
        told += diagnose(model)
    assert told[1].kept == pytest.approx(told[0].kept, rel=1e-3)
    assert told[1].angle == pytest.approx(told[0].angle * size, rel=1e-3)


def test_it_prints_as_a_table():
    model = Model()
    model.first.grad = tangent_at(model.first.detach(), rank=2, norm=3.0)
    lines = str(diagnose(model)).splitlines()
    assert lines[0].split()[:5] == ["parameter", "shape", "k", "kept", "angle"]
    assert lines[1].split()[:5] == ["first", "24×24", "4", "100%", "1.1"]
    assert lines[3].split()[:5] == ["unused", "6×6", "1", "-", "-"]
    assert lines[3].endswith("-  no gradient")
    assert repr(diagnose(model)) == "\n".join(lines)


def test_without_gradients_or_orthogonal_parameters_there_is_nothing_to_tell():
    with pytest.raises(ValueError, match=r"must have a gradient, but none .* call `backward\(\)`"):
        diagnose(Model())
    with pytest.raises(ValueError, match=r"a parameter on LowRankUnitary.*but Linear has none"):
        diagnose(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_matrix_that_is_not_finite_makes_all_shares_nan(value):
    x, grad = LowRankUnitary().random(2, 8, 8), torch.randn(2, 8, 8)
    x.data[0, 0, 0] = value
    assert all(math.isnan(share) for share in kept_fraction(x, grad, ks=(1, 4)).values())


def test_a_large_parameter_is_finite():
    weight = geoopt.ManifoldParameter(1e20 * LowRankUnitary().random(8, 8).data)
    weight.manifold, weight.grad = LowRankUnitary(), torch.randn(8, 8)
    module = torch.nn.Module()
    module.weight = weight
    (row,) = diagnose(module)
    assert row.note != "parameter not finite"


@pytest.mark.parametrize(
    ("lr", "kind", "message"),
    [
        (-1.0, ValueError, r"`lr` must lie in \[0\.0, inf\), got -1\.0"),
        ("fast", TypeError, r"`lr` must be a number, got 'fast'"),
    ],
)
def test_a_learning_rate_is_a_number_that_is_not_negative(lr, kind, message):
    with pytest.raises(kind, match=message):
        diagnose(Model(), lr=lr)


def test_a_learning_rate_may_be_a_tensor():
    module = torch.nn.Module()
    module.weight = on(LowRankUnitary(), unitary(8, 8))
    module.weight.grad = torch.randn(8, 8, dtype=torch.float64)
    (row,), (expected,) = diagnose(module, lr=torch.tensor(0.5)), diagnose(module, lr=0.5)
    assert type(row.angle) is float
    assert row == expected


def test_a_parameter_without_values_is_named():
    with pytest.raises(ValueError, match=r"`weight_hh_l0` must have values, but is on the meta"):
        diagnose(geoopt_projunn.nn.OrthogonalRNN(3, 8, device="meta"))


def test_one_rank_may_be_a_number():
    x, grad = unitary(8, 8), torch.randn(8, 8, dtype=torch.float64)
    assert kept_fraction(x, grad, ks=2) == kept_fraction(x, grad, ks=(2,))


def holder(p):
    module = torch.nn.Module()
    module.weight = p
    return module


@pytest.mark.parametrize("shape", [(9, 4), (6, 6)])
def test_the_angle_is_that_of_a_step(shape):
    """Of a whole generator, whose eigenvalues are the angles."""
    is_square = shape[0] == shape[1]
    manifold = (LowRankUnitary if is_square else LowRankStiefel)(None)
    p = on(manifold, manifold.random(*shape, dtype=torch.float64))
    p.grad = torch.randn_like(p)
    x, d = p.detach().as_subclass(torch.Tensor), p.grad
    generator = (1 if is_square else 2) * skewh(d @ x.mT)
    planes = manifold.highest_rank(*shape)[0]
    expected = 0.1 * torch.linalg.matrix_norm(generator).item() / math.sqrt(2 * planes)
    (row,) = diagnose(holder(p), lr=0.1)
    assert row.angle == pytest.approx(expected)


def test_one_normal_gradient_of_a_batch_leaves_the_others():
    p = on(LowRankUnitary(), unitary(2, 6, 6))
    p.grad = torch.randn(2, 6, 6, dtype=torch.float64)
    p.grad[0] = p.detach()[0]
    (row,) = diagnose(holder(p))
    assert not row.note
    assert 0 < row.kept <= 1


def test_a_matrix_of_one_row_has_a_diagnosis():
    p = on(LowRankUnitary(), LowRankUnitary().random(1, 1, dtype=torch.complex64))
    p.grad = 1j * p.detach().as_subclass(torch.Tensor)
    (row,) = diagnose(holder(p))
    assert math.isfinite(row.angle)
