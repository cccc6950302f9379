"""Whole stages of a step, against torch's own operations and dense references."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankUnitary, drift, retractions, sketches
from geoopt_projunn.linalg import extension, stages
from geoopt_projunn.rotation import Rotation
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import (
    DTYPES,
    WIDE_DTYPES,
    eps,
    exponential_reference,
    skew,
    skewh,
    unitary,
    wide,
)
from tests._modes import Recorder

pytestmark = [
    pytest.mark.skipif(not extension.BUILT, reason="the extension is not built"),
    pytest.mark.usefixtures("without_gradients"),
]

SERVED = ("tangent", "lsi")
dtypes = pytest.mark.parametrize("dtype", DTYPES)
served = pytest.mark.parametrize("name", SERVED)
# One chunk of rows and several; whole vectors and rests; as many vectors as can be.
sizes = pytest.mark.parametrize(
    ("n", "k"), [(2, 1), (5, 1), (5, 2), (24, 1), (64, 4), (65, 32), (260, 1), (260, 3)], ids=str
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(n, dtype, b=3):
    counter = torch.tensor([0, 5, 1_000_003, 2**40])[:b]
    return unitary(b, n, n, dtype=dtype), torch.randn(b, n, n, dtype=dtype), counter


def generator(sketched):
    return sketched.rows.mH @ skewh(sketched.core) @ sketched.rows


def names_of(function, *arguments):
    with Recorder() as recorder:
        function(*arguments)
    return recorder.operations


@pytest.mark.parametrize("counter", [-1, -7, 2**40, -(2**40), 2**62 + 3, -(2**62) - 3])
@pytest.mark.parametrize("k", [1, 3])
@served
def test_any_counter_stays_within_its_matrix(name, k, counter):
    x, d, _ = draw(9, torch.float64)
    d[0], d[2] = torch.nan, torch.nan
    counter, active = torch.tensor([counter]), torch.ones(1, dtype=torch.bool)
    sketched = sketches.SKETCHES[name](x[1:2], d[1:2], k, counter)
    before = x.clone()
    manifold = LowRankUnitary(k, sketch=name, sweep=4)
    stepped = manifold.step_(x[1:2], d[1:2], 0.1, counter, active)
    assert stepped.all()
    assert_bit_equal(x[::2], before[::2])
    if abs(int(counter)) < 2**60:
        with extension.disabled():
            expected = sketches.SKETCHES[name](before[1:2], d[1:2], k, counter)
        assert_within(generator(sketched), generator(expected), 1e-11)


@sizes
@served
@dtypes
def test_a_sketch_is_that_of_torch(dtype, name, n, k):
    x, d, counter = draw(n, dtype)
    actual = sketches.SKETCHES[name](x, d, k, counter)
    with extension.disabled():
        expected = sketches.SKETCHES[name](x, d, k, counter)
    assert actual.rows.dtype == actual.core.dtype == wide(dtype)
    assert actual.rows.shape == (3, 2 * k, n)
    # Where the vectors reach nearly everything the last of them are badly determined.
    loss = 1e5 if 2 * k > n - 2 else 1e3
    size = torch.linalg.matrix_norm(generator(expected)).max().item()
    assert_within(generator(actual), generator(expected), loss * eps(dtype) * size)


def by_columns(x):
    return x.mT.contiguous().mT


@pytest.mark.parametrize("n", [70, 260])
@served
@dtypes
def test_matrices_that_are_stored_by_columns_are_taken_as_they_are(dtype, name, n):
    x, d, counter = draw(n, dtype)
    for k in (1, 3):
        expected = generator(sketches.SKETCHES[name](x, d, k, counter))
        for point, direction in ((x, by_columns(d)), (by_columns(x), d), (x.mT, x.mT)):
            assert stages.serve_sketch(point, direction, k)
        for point, direction in ((x, by_columns(d)), (by_columns(x), by_columns(d))):
            actual = generator(sketches.SKETCHES[name](point, direction, k, counter))
            assert_within(actual, expected, 1e3 * eps(dtype) * expected.abs().max().item())


@served
@dtypes
def test_other_layouts_are_left_to_torch(dtype, name):
    x, d, counter = draw(24, dtype)
    sketch = sketches.SKETCHES[name]
    expected = generator(sketch(x, d, 2, counter))
    stretched = torch.stack((d, d), dim=-1).flatten(-2)[..., ::2]
    batch = d.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    views = [(x, stretched), (x, batch), (x.permute(1, 2, 0).contiguous().permute(2, 0, 1), d)]
    if dtype.is_complex:
        views += [(x.conj().clone().conj(), d), (x, d.mH.clone().mH)]
    for point, direction in views:
        assert not stages.serve_sketch(point, direction, 2)
        actual = generator(sketch(point, direction, 2, counter))
        assert_within(actual, expected, 1e3 * eps(dtype) * expected.abs().max().item())


@served
@dtypes
def test_of_a_direction_of_low_rank_nothing_is_nan(dtype, name):
    x, d, counter = draw(16, dtype)
    d[0] = 0
    d[1] = d[1, :, :1] @ d[1, :1]
    sketched = sketches.SKETCHES[name](x, d, 3, counter)
    assert sketched.rows.isfinite().all()
    assert_bit_equal(sketched.core[0], torch.zeros_like(sketched.core[0]))
    gram = sketched.rows @ sketched.rows.mH
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    assert_within(gram, torch.diag_embed(diagonal.round()).to(gram.dtype), 1e-14)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k", [1, 3])
@served
@dtypes
def test_a_direction_that_is_not_finite_shows_in_its_own_result_only(dtype, name, k, bad):
    x, d, counter = draw(20, dtype)
    d[1, 7, 3] = bad
    sketched = sketches.SKETCHES[name](x, d, k, counter)
    finite = [part.isfinite().flatten(1).all(-1) for part in sketched]
    assert (finite[0] & finite[1]).tolist() == [True, False, True]


@pytest.mark.parametrize("length", [0.0, 1e-200, 1e-12, 1e-3, 0.04, 1.0, 30.0, 169.0])
@pytest.mark.parametrize("r", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_exponential_is_that_of_the_eigenvectors(dtype, r, length):
    core = skew(3, r, r, norm=length, dtype=dtype) if r > 1 or dtype.is_complex else None
    core = torch.zeros(3, r, r, dtype=dtype) if core is None else core
    hermitian = torch.randn(3, r, r, dtype=dtype)
    delta = retractions.exponential(core + hermitian + hermitian.mH)
    eye = torch.eye(r, dtype=dtype)
    tolerance = 100 * eps(dtype) * max(1.0, length)
    assert_within(delta, exponential_reference(core) - eye, tolerance)
    # Of small generators all digits are kept.
    exact = retractions.exponential(core)
    if length < 1e-10:
        assert_within(exact, core, 4 * eps(dtype) * length + length**2)
    assert_unitary(exact + eye, 1000)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_the_exponential_of_a_long_generator_is_that_of_torch(dtype):
    core = skew(4, 4, 4, norm=1e6, dtype=dtype)
    actual = retractions.exponential(core)
    with extension.disabled():
        expected = retractions.exponential(core)
    assert_within(actual, expected, 1e-11)
    for bad in (torch.nan, torch.inf):
        core[1, 2, 3] = bad
        assert actual.isfinite().all()
        finite = retractions.exponential(core).isfinite().flatten(1).all(-1)
        assert finite.tolist() == [True, False, True, True]


def turn_reference(x, rotation, sweep, counter, active):
    """Rotate in double precision, then mend the columns as the documentation says."""
    n = x.shape[-1]
    x, rows = x.to(rotation.delta.dtype), rotation.rows.to(rotation.delta.dtype)
    turned = x + rows.mH @ rotation.delta @ rows @ x
    for index in range(len(x)):
        chosen = [(int(counter[index]) * sweep + j) % n for j in range(sweep)]
        columns = turned[index][:, chosen]
        error = turned[index].mH @ columns - torch.eye(n, dtype=x.dtype)[:, chosen]
        if torch.linalg.norm(error) < 0.1:
            mended = columns - turned[index] @ error + columns @ error[chosen] / 2
            turned[index][:, chosen] = mended
    return torch.where(active[:, None, None], turned, x)


@pytest.mark.parametrize("sweep", [0, 1, 2, 7])
@pytest.mark.parametrize(("n", "r"), [(7, 2), (24, 3), (65, 8), (260, 2)], ids=str)
@pytest.mark.parametrize("stored", ["by rows", "by columns"])
@dtypes
def test_a_turn_rotates_and_mends(dtype, stored, n, r, sweep):
    x, _, counter = draw(n, dtype, b=4)
    # Off the manifold, so that there is something to mend; the third too far for it.
    x += torch.randn_like(x) * torch.tensor([1e-4, 1e-3, 1.0, 1e-4])[:, None, None] / n
    rows = torch.linalg.qr(torch.randn(4, n, r, dtype=wide(dtype))).Q.mH.to(dtype)
    rotation = Rotation(rows, retractions.exponential(skew(4, r, r, dtype=wide(dtype))))
    active = torch.tensor([True, True, True, False])
    expected = turn_reference(x, rotation, sweep, counter, active)
    other, before, version = x.clone(), x.clone(), x._version
    turning = by_columns(x) if stored == "by columns" else x
    turned = drift.turn_(turning, rotation, sweep, counter, active)
    assert_bit_equal(turned, active)
    assert turning._version > version or turning is not x
    x = turning
    assert_within(x, expected, 30 * eps(dtype))
    assert_bit_equal(x[3], before[3])
    with extension.disabled():
        assert_bit_equal(drift.turn_(other, rotation, sweep, counter, active), active)
    assert_within(x, other, 30 * eps(dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["rows", "delta"])
@dtypes
def test_a_rotation_that_is_not_finite_is_left_out(dtype, part, bad):
    x, _, counter = draw(24, dtype)
    rows = torch.linalg.qr(torch.randn(3, 24, 2, dtype=wide(dtype))).Q.mH.to(dtype).contiguous()
    rotation = Rotation(rows, retractions.exponential(skew(3, 2, 2, dtype=wide(dtype))))
    getattr(rotation, part)[1, 1, 0] = bad
    before = x.clone()
    turned = drift.turn_(x, rotation, 1, counter, torch.ones(3, dtype=torch.bool))
    assert turned.tolist() == [True, False, True]
    assert_bit_equal(x[1], before[1])
    assert x.isfinite().all()


@pytest.mark.parametrize("n", [64, 300])
@dtypes
def test_threads_and_other_matrices_change_no_bit(dtype, n, threads):
    b = 3 + 2**20 // n**2 // 4
    x, d = unitary(1, n, n, dtype=dtype).expand(b, n, n).clone(), torch.randn(b, n, n, dtype=dtype)
    counter = torch.arange(b)

    def step(x, d, counter):
        x = x.clone()
        sketched = sketches.tangent(x, d, 2, counter)
        rotation = LowRankUnitary(2).rotation(sketched, 0.1, dtype)
        drift.turn_(x, rotation, 1, counter, torch.ones_like(counter, dtype=torch.bool))
        whole, everywhere = x.clone(), torch.ones_like(counter, dtype=torch.bool)
        LowRankUnitary(3).step_(whole, d, 0.1, counter, everywhere)
        return x, whole, *sketched, *sketches.lsi(x, d, 1, counter)

    outs = []
    for count in (1, 2, 3):
        threads(count)
        outs.append(step(x, d, counter))
    for other in outs[1:]:
        for one, two in zip(outs[0], other, strict=True):
            assert_bit_equal(one, two)
    alone = step(x[2:3], d[2:3], counter[2:3])
    for one, two in zip(alone, outs[0], strict=True):
        assert_bit_equal(one[0], two[2])


@pytest.mark.parametrize("b", [0, 1])
def test_stages_are_operators_as_torch_wants_them(b):
    x, d, counter = torch.eye(6).expand(b, 6, 6).clone(), torch.randn(b, 6, 6), torch.arange(b)
    rows, core = stages.tangent(x, d, 2, counter)
    delta = stages.retract(core, "exponential")
    active = torch.ones(b, dtype=torch.bool)
    for stage, arguments in (
        (stages.tangent, (x, d, 2, counter)),
        (stages.lsi, (x, d, 2, counter)),
        *((stages.retract, (core, name)) for name in stages.RETRACTIONS),
        (stages.turn_, (x, rows.float(), delta, 1, counter, active)),
    ):
        torch.library.opcheck(stage, arguments)
    torch.library.opcheck(stages.retract, (core.mT, "cayley"))


def test_each_stage_is_one_operation_where_it_is_served():
    x, d, counter = draw(24, torch.float32)
    assert names_of(sketches.tangent, x, d, 2, counter) == {"tangent"}
    assert names_of(sketches.lsi, x, d, 2, counter) == {"lsi"}
    sketched = sketches.tangent(x, d, 2, counter)
    for retract in retractions.RETRACTIONS.values():
        assert "retract" in names_of(retract, sketched.core)
    rotation = LowRankUnitary(2).rotation(sketched, 0.1, x.dtype)
    active = torch.ones(3, dtype=torch.bool)
    assert names_of(drift.turn_, x, rotation, 1, counter, active) == {"turn_"}


def test_a_length_for_each_matrix_is_taken():
    x, d, counter = draw(12, torch.float64)
    length, active = torch.tensor([0.1, -0.2, 0.0]), torch.ones(3, dtype=torch.bool)
    each, manifold = x.clone(), LowRankUnitary(2, sweep=0)
    manifold.step_(each, d, length[:, None, None].double(), counter, active)
    for index in range(3):
        one = x[index : index + 1].clone()
        part = slice(index, index + 1)
        manifold.step_(one, d[part], float(length[index]), counter[part], active[part])
        assert_within(each[part], one, 1e-7)


def test_a_core_in_single_precision_is_left_to_torch():
    core = skew(2, 4, 4).float()
    assert_within(retractions.exponential(core), retractions.exponential(core.double()), 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_derivatives_of_forward_mode_are_left_to_torch():
    core, tangent = skew(2, 4, 4), skew(2, 4, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(core, tangent)
        delta = retractions.exponential(dual)
        derivative = torch.autograd.forward_ad.unpack_dual(delta).tangent
    step = 1e-6
    moved = retractions.exponential(core + step * tangent) - retractions.exponential(
        core - step * tangent
    )
    assert_within(derivative, moved / (2 * step), 1e-8)


def test_what_is_not_served():
    x, d, _ = draw(24, torch.float32)
    core = torch.zeros(1, 4, 4, dtype=torch.float64)
    assert stages.serve(x)
    assert stages.serve_sketch(x, d, 12)
    assert not stages.serve_sketch(x, d, 13)
    assert not stages.serve_sketch(x, d.double(), 1)
    many = torch.empty(1, 100, 100)
    assert stages.serve_sketch(many, many, 32)
    assert not stages.serve_sketch(many, many, 33)
    assert stages.serve_cores(core)
    assert not stages.serve_cores(torch.zeros(1, 65, 65, dtype=torch.float64))
    for context in (torch.enable_grad(), extension.disabled()):
        with context:
            assert not stages.serve(x)
            assert not stages.serve_sketch(x, d, 1)
            assert not stages.serve_cores(core)
    assert stages.serve(x.mT)
    assert not stages.serve(x.transpose(0, 1))
    views = torch.conj(x.to(torch.complex64)), torch._neg_view(x)
    for other in (x.to("meta"), x.bfloat16(), *views):
        assert not stages.serve(other)
    seen = []
    torch.func.vmap(lambda one: seen.append(stages.serve(one)) or one)(x[None])
    assert seen == [False]


def test_what_does_not_fit_is_refused():
    x, d, counter = draw(6, torch.float32)
    rows, core = stages.tangent(x, d, 1, counter)
    delta, active = stages.retract(core, "exponential"), torch.ones(3, dtype=torch.bool)
    before = x.clone()
    with pytest.raises(ValueError, match=r"`x` must be contiguous, .* got .* strides \(1, 3, 18\)"):
        stages.tangent(torch.randn(6, 6, 3).permute(2, 1, 0), d, 1, counter)
    with pytest.raises(ValueError, match=r"`d` must be 3 matrices, got 2"):
        stages.lsi(x, d[:2], 1, counter)
    with pytest.raises(ValueError, match=r"`counter` must be .* torch.int64, got .* torch.int32"):
        stages.tangent(x, d, 1, counter.int())
    with pytest.raises(ValueError, match=r"`k` must be between 1 and n / 2 = 3, got 4"):
        stages.tangent(x, d, 4, counter)
    with pytest.raises(ValueError, match=r"`core` must be .*float64, got .*float32"):
        stages.retract(core.float(), "polar")
    turn = {"x": x, "rows": rows.float(), "delta": delta, "counter": counter, "active": active}
    for name, wrong, message in (
        ("rows", rows, r"`rows` must be .*float32, got .*float64"),
        ("delta", delta[:, :1], r"`delta` must be .*\(3, 2, 2\).* got shape \(3, 1, 2\)"),
        ("counter", counter[:2], r"`counter` must be .*\(3,\).* got shape \(2,\)"),
        ("active", active.int(), r"`active` must be .*bool, got .*int32"),
    ):
        with pytest.raises(ValueError, match=message):
            stages.turn_(**{**turn, name: wrong}, sweep=1)
    with pytest.raises(ValueError, match=r"`sweep` must be between 0 and n = 6, got 7"):
        stages.turn_(**turn, sweep=7)
    assert_bit_equal(x, before)


def test_flops_are_counted_and_shapes_are_known_without_data():
    def run():
        x, d = torch.zeros(2, 512, 512), torch.zeros(2, 512, 512)
        counter = torch.zeros(2, dtype=torch.int64)
        outs = []
        for name in SERVED:
            sketched = sketches.SKETCHES[name](x, d, 4, counter)
            rotation = LowRankUnitary(4).rotation(sketched, 0.1, x.dtype)
            drift.turn_(x, rotation, 2, counter, torch.ones(2, dtype=torch.bool))
            outs += [*sketched, *rotation]
        return outs

    with FlopCounterMode(display=False) as counter:
        real = run()
    # Of each matrix: the sketches of rank 4, and two turns of rank 8 that sweep two columns.
    of_entries = 16 * 4 + 6 * 4 + 2 * 4 * (8 + 2)
    exponentials = 2 * 2 * 19 * 2 * 8**3
    assert counter.get_total_flops() == of_entries * 2 * 512**2 + exponentials
    with FakeTensorMode():
        fake = run()
    assert [one.shape for one in fake] == [one.shape for one in real]
