"""What optimizers remember, against torch's own optimizers and operations."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from geoopt_projunn.linalg import extension, moments
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import DTYPES, REAL_DTYPES, eps

pytestmark = [
    pytest.mark.skipif(not extension.BUILT, reason="the extension is not built"),
    pytest.mark.usefixtures("without_gradients"),
]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
# A block and a rest, several blocks, and several pieces.
sizes = pytest.mark.parametrize(
    "shape", [(3, 1, 1), (2, 5, 5), (3, 40, 40), (2, 150, 150)], ids=str
)
BETAS = [(0.9, 0.999), (0.0, 0.5), (0.5, 0.3), (0.3, 0.0)]
NUMBERS = (0.9, 0.999, 1e-8)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(shape, dtype, second="elementwise", most=False):
    """Gradient, moments and steps taken, as in the middle of a run."""
    grad, first = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    small = shape if second == "elementwise" else (shape[0], 1, 1)
    square = torch.rand(small, dtype=first.real.dtype) + 0.1
    largest = torch.rand(small, dtype=first.real.dtype) + 0.1 if most else None
    return grad, first, square, largest, torch.arange(shape[0])


def reference(grad, first, second, most, taken, beta1, beta2, eps):
    """The formulas of Kingma and Ba in double precision, the second moment of |g|²."""
    wide = torch.complex128 if grad.is_complex() else torch.float64
    grad, first, second = grad.to(wide), first.to(wide), second.double()
    square = grad.abs() ** 2
    if second.shape != grad.shape:
        square = square.sum((-2, -1), keepdim=True)
    first = beta1 * first + (1 - beta1) * grad
    second = beta2 * second + (1 - beta2) * square
    most = None if most is None else torch.maximum(most.double(), second)
    step = (taken + 1).double()[:, None, None]
    root = ((second if most is None else most) / (1 - beta2**step)).sqrt()
    return first / (1 - beta1**step) / (root + eps), first, second, most


@pytest.mark.parametrize("most", [False, True])
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("second", ["elementwise", "scalar"])
@sizes
@dtypes
def test_direction_and_moments_are_those_of_the_paper(dtype, shape, second, betas, most):
    state = draw(shape, dtype, second, most)
    before = [None if one is None else one.clone() for one in state]
    direction, *expected = reference(*state, *betas, 1e-3)
    actual, finite = moments.adam_direction(*state, *betas, 1e-3)
    assert finite.all()
    assert_within(
        actual / (1 + direction.abs()), direction / (1 + direction.abs()), 50 * eps(dtype)
    )
    for one, two in zip(state, before, strict=True):
        assert one is None or torch.equal(one, two)
    active = torch.arange(shape[0]) != 1
    versions = [one._version for one in state[1:4] if one is not None]
    moments.adam_moments_(*state, *betas, 1e-3, active)
    changed = [one._version for one in state[1:4] if one is not None]
    assert all(new > old for new, old in zip(changed, versions, strict=True))
    for one, two, old in zip(state[1:4], expected, before[1:4], strict=True):
        if one is not None:
            scale = two.abs().max().item()
            assert_within(one[active], two[active], 50 * eps(dtype) * scale)
            assert_bit_equal(one[~active], old[~active])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_a_run_is_that_of_torch(dtype, amsgrad):
    p = torch.zeros(40, 40, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=1.0, amsgrad=amsgrad)
    first, second = torch.zeros(1, 40, 40, dtype=dtype), torch.zeros(1, 40, 40, dtype=dtype)
    most = torch.zeros_like(second) if amsgrad else None
    for step in range(10):
        p.grad = torch.randn(40, 40, dtype=dtype) * 0.5**step
        before = p.detach().clone()
        optimizer.step()
        arguments = p.grad[None], first, second, most, torch.tensor([step]), *NUMBERS
        direction, finite = moments.adam_direction(*arguments)
        moments.adam_moments_(*arguments, finite)
        assert_within(before - direction[0], p.detach(), 30 * eps(dtype))


@pytest.mark.parametrize("dampening", [0.0, 0.3])
@sizes
@dtypes
def test_momentum_is_that_of_torch(dtype, shape, dampening):
    grad, buffer, *_ = draw(shape, dtype)
    taken = torch.arange(shape[0])
    share = (1 - dampening * (taken > 0).double())[:, None, None]
    following = 0.9 * buffer + share * grad
    numbers = grad, buffer, taken, 0.9, dampening
    for nesterov, expected in ((False, following), (True, grad + 0.9 * following)):
        direction, finite = moments.momentum_direction(*numbers, nesterov)
        assert finite.all()
        assert_within(direction, expected, 20 * eps(dtype))
    active, before = torch.arange(shape[0]) % 2 == 0, buffer.clone()
    moments.momentum_buffer_(*numbers, True, active)
    assert_within(buffer[active], following[active], 10 * eps(dtype))
    assert_bit_equal(buffer[~active], before[~active])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("entry", [0, 255, 256, 20_000, 22_499])
@pytest.mark.parametrize("second", ["elementwise", "scalar"])
@dtypes
def test_what_is_not_finite_shows_where_it_is(dtype, second, entry, bad):
    # Also if the largest second moment so far hides it.
    state = draw((3, 150, 150), dtype, second, most=True)
    clean = state[0].clone()
    state[0][1].view(-1)[entry] = bad
    assert moments.adam_direction(*state, *NUMBERS)[1].tolist() == [True, False, True]
    for nesterov in (False, True):
        momentum = state[0], state[1], state[4], 0.9, 0.0, nesterov
        assert moments.momentum_direction(*momentum)[1].tolist() == [True, False, True]
    large = torch.finfo(dtype).max ** 0.75
    state[0].copy_(clean)[2, 3, 4] = large
    # Its square overflows, which is the second moment's.
    assert moments.adam_direction(*state, *NUMBERS)[1].tolist() == [True, True, False]


@dtypes
def test_threads_and_other_matrices_change_no_bit(dtype, threads):
    outs = []
    for second in ("elementwise", "scalar"):
        state = draw((3, 300, 300), dtype, second, most=True)
        for count in (1, 2, 3):
            threads(count)
            own = [one.clone() for one in state]
            out = [*moments.adam_direction(*own, *NUMBERS)]
            out += [*moments.momentum_direction(own[0], own[1], own[4], 0.9, 0.1, True)]
            moments.adam_moments_(*own, *NUMBERS, out[1])
            outs.append([*out, *own])
        alone = [one[1:2].clone() for one in state]
        direction, finite = moments.adam_direction(*alone, *NUMBERS)
        moments.adam_moments_(*alone, *NUMBERS, finite)
        for other in outs[1:]:
            for one, two in zip(outs[0], other, strict=True):
                assert_bit_equal(one, two)
        for one, two in zip((direction, *alone), (outs[0][0], *outs[0][4:]), strict=True):
            assert_bit_equal(one[0], two[1])
        outs.clear()


@pytest.mark.parametrize("b", [0, 2])
def test_they_are_operators_as_torch_wants_them(b):
    for second, most in (("elementwise", True), ("scalar", False)):
        state = draw((b, 6, 6), torch.complex64, second, most)
        torch.library.opcheck(moments.adam_direction, (*state, *NUMBERS))
        active = torch.ones(b, dtype=torch.bool)
        torch.library.opcheck(moments.adam_moments_, (*state, *NUMBERS, active))
        momentum = state[0], state[1], state[4], 0.9, 0.1, True
        torch.library.opcheck(moments.momentum_direction, momentum)
        torch.library.opcheck(moments.momentum_buffer_, (*momentum, active))


def test_what_is_served():
    grad, first, second, *_ = draw((2, 6, 6), torch.complex64)
    assert moments.serve(grad, first, second)
    assert not moments.serve(grad.mT, first, second)
    assert not moments.serve(grad.conj(), first, second)
    assert not moments.serve(grad, torch._neg_view(first), second)
    assert not moments.serve(grad, first, second.double())
    assert not moments.serve(grad.to("meta"), first, second)
    with extension.disabled():
        assert not moments.serve(grad, first, second)
    with FakeTensorMode():
        fake = moments.adam_direction(*draw((2, 6, 6), torch.complex64), *NUMBERS)
    assert [(one.shape, one.dtype) for one in fake] == [
        ((2, 6, 6), torch.complex64),
        ((2,), torch.bool),
    ]


def test_what_does_not_fit_is_refused():
    grad, first, second, most, taken = draw((2, 6, 6), torch.float32, most=True)
    before = [one.clone() for one in (grad, first, second, most)]
    active = torch.ones(2, dtype=torch.bool)
    for wrong, message in (
        ((grad.mT, first, second, most, taken), r"`grad` must be contiguous, .* \(36, 1, 6\)"),
        ((grad, first.double(), second, most, taken), r"`first` must .* got .*float64"),
        ((grad, first, second[:1], most, taken), r"`second` must .* got shape \(1, 6, 6\)"),
        ((grad, first, second, most[:, :1], taken), r"`most` must .* got shape \(2, 1, 6\)"),
        ((grad, first, second, most, taken.int()), r"`taken` must .* got .*int32"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.adam_direction(*wrong, *NUMBERS)
        with pytest.raises(ValueError, match=message):
            moments.adam_moments_(*wrong, *NUMBERS, active)
    state = grad, first, second, most, taken
    with pytest.raises(ValueError, match=r"`active` must be .*\(2,\).*got shape \(1,\)"):
        moments.adam_moments_(*state, *NUMBERS, active[:1])
    momentum = taken, 0.9, 0.0, False
    with pytest.raises(ValueError, match=r"`buffer` must be .*got .*float64"):
        moments.momentum_direction(grad, first.double(), *momentum)
    with pytest.raises(ValueError, match=r"`grad` must be contiguous, .* \(36, 1, 6\)"):
        moments.momentum_buffer_(grad.mT, first, *momentum, active)
    with pytest.raises(ValueError, match=r"`active` must be .*\(2,\).*got shape \(1,\)"):
        moments.momentum_buffer_(grad, first, *momentum, active[:1])
    for one, two in zip(state, before, strict=False):
        assert_bit_equal(one, two)
