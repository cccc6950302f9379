"""Products that read a matrix once, against torch's own in double precision."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn.linalg import extension, rows, streams
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import DTYPES, eps, wide
from tests._modes import Recorder

pytestmark = pytest.mark.skipif(not extension.BUILT, reason="the extension is not built")

# Whole vectors and rests, one chunk of rows and several, every case of rows at once.
SIZES = [(1, 1, 1), (3, 5, 7), (2, 16, 16), (1, 127, 33), (1, 130, 64), (2, 300, 260)]
COUNTS = [1, 2, 3, 4, 8, 15]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
sizes = pytest.mark.parametrize("size", SIZES)
counts = pytest.mark.parametrize("count", COUNTS)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(*size, dtype):
    return torch.randn(*size, dtype=dtype)


def assert_product(actual, left, right):
    """Equal to the product in double precision, to the rounding of a sum of that length."""
    assert actual.dtype == left.dtype
    expected = left.to(wide(left.dtype)) @ right.to(wide(left.dtype))
    # Of entries of size one: errors add up like a random walk, and no worse.
    assert_within(actual, expected, 10 * eps(left.dtype) * left.shape[-1] ** 0.5 * 4)


@counts
@sizes
@dtypes
def test_each_side_is_the_product(dtype, size, count):
    b, n, m = size
    x, left = draw(*size, dtype=dtype), draw(b, count, n, dtype=dtype)
    right = draw(b, count, m, dtype=dtype)
    assert_product(streams.times(left, x), left, x)
    assert_product(streams.times_adjoint(right, x), right, x.mH)


@pytest.mark.parametrize(("left_count", "right_count"), [(1, 1), (2, 2), (5, 5), (1, 3), (9, 2)])
@sizes
@dtypes
def test_both_sides_are_the_two_products(dtype, size, left_count, right_count):
    b, n, m = size
    x = draw(*size, dtype=dtype)
    left, right = draw(b, left_count, n, dtype=dtype), draw(b, right_count, m, dtype=dtype)
    out_left, out_right = streams.both_sides(left, right, x)
    assert_product(out_left, left, x)
    assert_product(out_right, right, x.mH)


@counts
@sizes
@dtypes
def test_the_update_adds_the_product_in_place(dtype, size, count):
    b, n, m = size
    x, rows, factor = (draw(*one, dtype=dtype) for one in (size, (b, count, n), (b, count, m)))
    expected = x.to(wide(dtype)) + rows.to(wide(dtype)).mH @ factor.to(wide(dtype))
    place, version = x.data_ptr(), x._version
    streams.add_product_(x, rows, factor)
    assert x.data_ptr() == place
    assert x._version > version
    assert_within(x, expected, 40 * eps(dtype) * count**0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13, 64])
@pytest.mark.parametrize("size", [(3, 5, 7), (1, 130, 64), (1, 300, 600)])
@dtypes
def test_the_update_rounds_an_entry_once_however_many_terms_it_adds(dtype, size, count):
    b, n, m = size
    x = torch.rand(*size, dtype=dtype)
    x = (torch.view_as_real(x) if x.is_complex() else x).mul_(0.5).add_(1.2)
    x = torch.view_as_complex(x) if dtype.is_complex else x
    rows, factor = (0.01 * draw(*one, dtype=dtype) for one in ((b, count, n), (b, count, m)))
    expected = x.to(torch.complex128) + rows.to(torch.complex128).mH @ factor.to(torch.complex128)
    streams.add_product_(x, rows, factor)
    error = torch.view_as_real(x.to(torch.complex128) - expected)
    # Half a unit in the last place of a number from 1 to 2, and the rounding of the small sum. In
    # double precision the expected value is rounded as well.
    units = 0.55 if eps(dtype) > 1e-10 else 1.1
    assert_within(error, 0, units * eps(dtype))


@pytest.mark.parametrize("size", [(2, 3, 0), (2, 0, 3), (0, 3, 3)])
def test_empty_matrices_have_empty_or_zero_products(size):
    b, n, m = size
    x, left, right = torch.empty(size), torch.ones(b, 2, n), torch.ones(b, 2, m)
    assert_bit_equal(streams.times(left, x), torch.zeros(b, 2, m))
    assert_bit_equal(streams.times_adjoint(right, x), torch.zeros(b, 2, n))
    streams.add_product_(x, left, right)


@dtypes
def test_conjugate_and_strided_rows_are_taken_for_what_they_are(dtype):
    x = draw(2, 40, 40, dtype=dtype)
    rows = draw(2, 40, 3, dtype=dtype)
    assert_product(streams.times(rows.mH, x), rows.mH, x)
    assert_product(streams.times_adjoint(rows.mT, x), rows.mT, x.mH)
    assert_product(streams.times(rows.mT, x.conj()), rows.mT, x.conj())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@dtypes
def test_a_bad_entry_shows_in_what_it_belongs_to(dtype, bad):
    x, rows = draw(2, 200, 50, dtype=dtype), draw(2, 1, 200, dtype=dtype)
    right = draw(2, 1, 50, dtype=dtype)
    x[1, 150, 7] = bad
    left_out, right_out = streams.both_sides(rows, right, x)
    assert left_out[0].isfinite().all()
    assert (~left_out[1].isfinite()).nonzero().tolist() == [[0, 7]]
    assert (~right_out.isfinite()).nonzero().tolist() == [[1, 0, 150]]


@pytest.mark.parametrize("count", [2, 19])
@pytest.mark.parametrize("n", [100, 700])
@dtypes
def test_threads_and_other_matrices_change_no_bit(dtype, n, count, threads):
    # Enough bytes for three threads.
    x, left = draw(12, n, n, dtype=dtype), draw(12, count, n, dtype=dtype)
    outs = []
    for number in (1, 2, 3):
        threads(number)
        updated = x.clone()
        streams.add_product_(updated, left, left)
        outs.append((*streams.both_sides(left, left, x), updated))
    for other in outs[1:]:
        for one, two in zip(outs[0], other, strict=True):
            assert_bit_equal(one, two)
    alone = x[1:2].clone()
    products = streams.both_sides(left[1:2], left[1:2], alone)
    streams.add_product_(alone, left[1:2], left[1:2])
    for one, two in zip((*products, alone), outs[0], strict=True):
        assert_bit_equal(one[0], two[1])


def test_large_products_are_served_and_nothing_else():
    x = torch.randn(1, 512, 512)
    assert streams.serve(x)
    assert streams.serve(x.mT)
    others = {
        "small": x[:, :32, :32].contiguous(),
        "strided": torch.randn(1, 512, 1024)[..., ::2],
        "half precision": x.bfloat16(),
        "without data": x.to("meta"),
    }
    for name, other in others.items():
        assert not streams.serve(other), name
    with torch.enable_grad():
        assert not streams.serve(x)
    with extension.disabled():
        assert not streams.serve(x)
    assert streams.serve(x)


@dtypes
def test_matrices_that_lie_column_by_column_are_read_as_they_lie(dtype):
    x = draw(2, 200, 210, dtype=dtype).mT
    left, right = draw(2, 3, 210, dtype=dtype), draw(2, 3, 200, dtype=dtype)
    with Recorder() as recorder:
        along, back = rows.both_sides(left, right, x)
        one, other = rows.times(left, x), rows.times_adjoint(right, x)
    assert recorder.operations >= {"both_sides", "times", "times_adjoint"}
    assert recorder.largest < x.numel() / 10
    for product in (along, one):
        assert_product(product, left, x)
    for product in (back, other):
        assert_product(product, right, x.mH)
    expected = x + left.mH @ right
    with Recorder() as recorder:
        rows.add_product_(x, left, right)
    assert "add_product_" in recorder.operations
    assert recorder.largest < x.numel() / 10
    assert_within(x, expected, 100 * eps(dtype))


@dtypes
def test_updates_of_conjugate_matrices_change_what_they_are_views_of(dtype):
    left, right = draw(2, 3, 200, dtype=dtype), draw(2, 3, 200, dtype=dtype)
    index = torch.tensor([[3], [7]]).unsqueeze(1).expand(2, 200, 1)
    for view in (torch.conj, lambda x: x.mH, lambda x: x.mT):
        for context in (nullcontext(), extension.disabled()):
            base = draw(2, 200, 200, dtype=dtype)
            x = view(base)
            expected = x + left.mH @ right
            expected = expected.scatter(-1, index, expected[..., :1].contiguous())
            columns = (x + left.mH @ right)[..., :1].contiguous()
            with context:
                rows.add_product_(x, left, right)
                rows.set_columns_(x, index, columns)
            assert_within(view(base), expected, 100 * eps(dtype))


def test_what_torch_func_transforms_is_left_to_torch():
    x, left = torch.randn(4, 2, 200, 200), torch.randn(4, 2, 1, 200)
    expected = torch.stack([rows.times(one, two) for one, two in zip(left, x, strict=True)])
    with Recorder() as recorder:
        batched = torch.func.vmap(rows.times)(left, x)
    assert "times" not in recorder.operations
    assert_within(batched, expected, 1e-4)


def test_without_threads_of_its_own_the_extension_serves_one(monkeypatch, threads):
    monkeypatch.setattr(extension, "USES_THREADS", False)
    x = torch.randn(1, 512, 512)
    threads(1)
    assert streams.serve(x)
    threads(2)
    assert not streams.serve(x)


def test_what_does_not_fit_is_refused():
    x, few = torch.randn(2, 6, 5), torch.randn(2, 1, 6)
    right = torch.randn(2, 1, 5)
    with pytest.raises(ValueError, match=r"`rows` must have shape \(2, k, 5\) .* got \(2, 1, 6\)"):
        streams.times_adjoint(few, x)
    with pytest.raises(ValueError, match=r"`right` must have shape \(2, k, 5\) .* got \(2, 1, 6\)"):
        streams.both_sides(few, few, x)
    with pytest.raises(ValueError, match=r"`rows` must have the dtype .*float32.* got .*float64"):
        streams.times(few.double(), x)
    with pytest.raises(ValueError, match=r"`x` must be contiguous .* strides \(30, 1, 6\)"):
        streams.times(few, torch.randn(2, 5, 6).mT)
    with pytest.raises(ValueError, match=r"`x` must be .* single or double .* got torch.bfloat16"):
        streams.times(few.bfloat16(), x.bfloat16())
    before = x.clone()
    with pytest.raises(ValueError, match=r"`factor` must have shape \(2, k, 5\)"):
        streams.add_product_(x, few, few)
    with pytest.raises(ValueError, match=r"as many rows, got 1 and 2; each row"):
        streams.add_product_(x, few, torch.cat((right, right), 1))
    assert_bit_equal(x, before)


def test_shapes_are_known_without_data_and_flops_are_counted():
    def run(make):
        x, left, right = make(2, 40, 30), make(2, 3, 40), make(2, 4, 30)
        streams.add_product_(x, left, right[:, :3].contiguous())
        return (
            *streams.both_sides(left, right, x),
            streams.times(left, x),
            streams.times_adjoint(right, x),
        )

    with FlopCounterMode(display=False) as counter:
        real = run(torch.randn)
    assert counter.get_total_flops() == 2 * (2 * 40 * 30) * (3 + 7 + 3 + 4)
    with FakeTensorMode():
        fake = run(torch.randn)
    assert [one.shape for one in fake] == [one.shape for one in real]
