"""All steps of a recurrence in one launch; test_recurrence_kernels.py runs this interpreted."""

from collections import Counter

import pytest
import torch

from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN, UnitaryRNN
from geoopt_projunn.nn.kernels import recurrence as kernels
from geoopt_projunn.nn.recurrences import passes, pointwise
from geoopt_projunn.nn.recurrences.order import Order
from geoopt_projunn.nn.recurrences.recurrence import recur
from geoopt_projunn.nn.recurrences.unrolled import Weights, unrolled
from tests._asserts import assert_same_to_rounding

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
INPUTS = 3


@pytest.fixture
def launches(monkeypatch):
    """Count the launches."""
    counts = Counter()
    launch = kernels.launch

    def counted(kernel, *args, **options):
        counts[kernel.fn.__name__.strip("_")] += 1
        launch(kernel, *args, **options)

    monkeypatch.setattr(kernels, "launch", counted)
    return counts


def arguments(n, rows, batch, dtype):
    """Return an input, a first state and weights, all to be differentiated."""

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(shape, dtype=dtype)).requires_grad_()

    hh, _ = torch.linalg.qr(torch.randn(n, n, dtype=dtype))
    offset = (torch.rand(n, dtype=dtype.to_real()) / 2 - 0.3).requires_grad_()
    weights = Weights(
        normal(n, INPUTS), hh.requires_grad_(), normal(n, scale=0.3), normal(n, scale=0.3), offset
    )
    return normal(rows, INPUTS), normal(batch, n), weights


def derivatives(run, x, h0, weights, order, loss_of):
    """Return both outputs, and the gradients of all arguments that require one."""
    given = [t for t in (x, h0, *weights) if t is not None and t.requires_grad]
    states, last = run(x, h0, weights, nonlinearity="modrelu", order=order)
    weight = loss_of.to(states.dtype)
    loss = (states * weight).real.sum() + last.abs().square().sum()
    return states.detach(), last.detach(), *torch.autograd.grad(loss, given)


def widened(t):
    return None if t is None else t.detach().to(WIDE.get(t.dtype, t.dtype)).requires_grad_()


CASES = {
    "steps of one sequence": (5, [1] * 6, False, True),
    "one step": (33, [2], False, True),
    "no first state": (33, [3] * 4, False, False),
    "backwards": (33, [2] * 3, True, True),
    "one unit": (1, [2] * 3, False, True),
    "lengths": (34, [4, 4, 2, 2, 2, 1], False, True),
    "lengths, backwards": (34, [4, 4, 2, 2, 2, 1], True, True),
    "lengths, backwards, no first state": (7, [3, 2, 2], True, False),
    "two blocks": (65, [2] * 3, False, True),
    "three blocks": (130, [1] * 3, False, True),
    "four blocks": (193, [1] * 3, True, True),
}


@each_dtype
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_loop_in_double_precision(case, dtype, launches):
    n, sizes, reverse, has_first = CASES[case]
    if kernels.Tiling.of(sizes[0], n, dtype) is None:
        assert case == "four blocks" or (case == "three blocks" and dtype == torch.complex128)
        n = 96
    order = Order(sizes, reverse)
    x, h0, weights = arguments(n, sum(sizes), sizes[0], dtype)
    h0 = h0 if has_first else None
    loss_of = torch.randn(sum(sizes), n, dtype=dtype)
    ours = derivatives(recur, x, h0, weights, order, loss_of)
    assert launches["forward"] == launches["backward"] == len(set(sizes))
    wide = [widened(t) for t in (x, h0, *weights)]
    expected = derivatives(unrolled, wide[0], wide[1], Weights(*wide[2:]), order, loss_of)
    for actual, other in zip(ours, expected, strict=True):
        assert_same_to_rounding(actual, other.to(actual.dtype), ulps=50)


@each_dtype
def test_gradients_of_some_arguments_are_those_of_all(dtype):
    x, h0, weights = arguments(33, 6, 2, dtype)
    order, loss_of = Order([2] * 3, False), torch.randn(6, 33, dtype=dtype)
    _, _, of_x, _, _, of_hh, *_ = derivatives(recur, x, h0, weights, order, loss_of)
    fixed = Weights(*[t.detach() for t in weights])
    *_, alone, _ = derivatives(recur, x, h0, fixed, order, loss_of)
    assert torch.equal(alone, of_x)
    one = fixed._replace(hh=weights.hh)
    *_, alone = derivatives(recur, x.detach(), h0.detach(), one, order, loss_of)
    assert torch.equal(alone, of_hh)


@each_dtype
def test_bits_do_not_depend_on_how_many_tiles_are_kept(dtype, monkeypatch):
    x, h0, weights = arguments(70, 4, 2, dtype)
    loss_of = torch.randn(4, 70, dtype=dtype)
    expected = derivatives(recur, x, h0, weights, Order([2, 2], False), loss_of)
    blocks, pieces, usual = kernels.Tiling.of(2, 70, dtype)
    for kept in {0, 4, 6} - {usual}:
        tiling = kernels.Tiling(blocks, pieces, kept)
        monkeypatch.setattr(kernels.Tiling, "of", lambda *_, tiling=tiling: tiling)
        again = derivatives(recur, x, h0, weights, Order([2, 2], False), loss_of)
        for one, other in zip(again, expected, strict=True):
            assert torch.equal(one, other)


@each_dtype
def test_bits_of_a_sequence_do_not_depend_on_the_others(dtype):
    x, _, weights = arguments(40, 15, 3, dtype)
    x = x.detach().view(5, 3, INPUTS)
    other = x.clone()
    other[:, ::2] = 7
    results = []
    for given in (x, other):
        rows = given.flatten(0, 1)
        with torch.no_grad():
            states, last = recur(
                rows, None, weights, nonlinearity="modrelu", order=Order([3] * 5, False)
            )
        results.append((states.view(5, 3, 40)[:, 1], last[1], states.view(5, 3, 40)[:, 0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][2], results[1][2])


@each_dtype
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of what is not finite
def test_values_at_the_ends_are_those_of_torchs_operations(dtype):
    z = torch.randn(4, 30, dtype=dtype)
    large = torch.finfo(dtype).max ** 0.9
    ends = [0.0, -0.0, large, -large, 1 / large, torch.inf, -torch.inf, torch.nan]
    z[0, : len(ends)] = torch.tensor(ends, dtype=dtype)
    offset = 0.4 * torch.randn(30, dtype=dtype.to_real())
    plain = pointwise.POINTWISE["modrelu", dtype.is_complex](offset)
    # Weights that are not numbers have no part in the first step.
    matrix = torch.full((30, 30), torch.nan, dtype=dtype)
    loop = kernels.Loop(matrix, offset, kernels.Tiling.of(4, 30, dtype))
    expected, h = z.clone(), z.clone()
    plain.forward_(expected)
    loop.forward_(h, 1, 0)
    torch.testing.assert_close(h, expected, equal_nan=True)
    assert h.isnan().any()
    grad = torch.randn(4, 30, dtype=dtype)
    along, of_z = torch.ones(4, 30, dtype=offset.dtype), grad.clone()
    plain.watch_offset(h)
    plain.backward_(grad, h)
    loop.backward_(of_z, h, along, 1, 0)
    torch.testing.assert_close(of_z, grad, equal_nan=True)
    torch.testing.assert_close(along - 1, plain.along, equal_nan=True)


def test_weights_may_be_a_conjugate_that_is_not_computed_yet(launches):
    x, h0, weights = arguments(5, 6, 2, torch.complex128)
    order, loss_of = Order([2] * 3, False), torch.randn(6, 5, dtype=x.dtype)
    lazy = weights._replace(hh=weights.hh.detach().conj().requires_grad_())
    done = weights._replace(hh=weights.hh.detach().conj().resolve_conj().requires_grad_())
    assert lazy.hh.is_conj()
    ours = derivatives(recur, x, h0, lazy, order, loss_of)
    assert launches == {"forward": 1, "backward": 1}
    for one, other in zip(ours, derivatives(recur, x, h0, done, order, loss_of), strict=True):
        assert torch.equal(one, other)


@each_dtype
def test_chunks_change_nothing(dtype, monkeypatch):
    sizes = [2, 2, 2, 2, 1]
    x, h0, weights = arguments(9, sum(sizes), 2, dtype)
    loss_of = torch.randn(sum(sizes), 9, dtype=dtype)
    for reverse in (False, True):
        order = Order(sizes, reverse)
        whole = derivatives(recur, x, h0, weights, order, loss_of)
        with monkeypatch.context() as patch:
            patch.setattr(passes, "_LEAST_ENTRIES", 1)
            patch.setattr(passes, "_MOST_CHUNKS", 2)
            in_chunks = derivatives(recur, x, h0, weights, order, loss_of)
        for one, other in zip(in_chunks, whole, strict=True):
            assert_same_to_rounding(one, other, ulps=50)


def test_weights_of_another_precision_are_refused_as_by_torchs_operations():
    x, _, weights = arguments(5, 6, 2, torch.float32)
    wide = weights._replace(hh=weights.hh.detach().double())
    with pytest.raises(RuntimeError, match="must have the same dtype, but got Float and Double"):
        recur(x, None, wide, nonlinearity="modrelu", order=Order([2] * 3, False))


@pytest.mark.parametrize("kind", [OrthogonalRNN, OrthogonalGRU])
def test_a_hook_may_lay_out_states_anew(kind):
    layer = kind(2, 5, nonlinearity="modrelu", dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def gradients():
        loss = layer(x)[0].square().sum()
        return torch.autograd.grad(loss, [*layer.parameters()])

    expected = gradients()
    anew = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t.mT.contiguous().mT if t.ndim == 2 else t
    )
    with anew:
        again = gradients()
    for one, other in zip(again, expected, strict=True):
        assert_same_to_rounding(one, other)


def test_a_batch_of_no_sequences_has_no_states():
    layer = OrthogonalRNN(2, 5)
    states, last = layer(torch.randn(3, 0, 2))
    states.sum().backward()
    assert (states.shape, last.shape) == ((3, 0, 5), (1, 0, 5))
    assert not layer.weight_hh_l0.grad.any()


@pytest.mark.parametrize("kind", [OrthogonalRNN, UnitaryRNN])
def test_second_derivatives_run_torchs_operations(kind, launches):
    layer = kind(2, 5, dtype=torch.complex128 if kind is UnitaryRNN else torch.float64)
    x = torch.randn(3, 2, 2, dtype=layer.weight_ih_l0.dtype, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x)[0].abs().sum(), x, create_graph=True)
    assert first.requires_grad
    assert launches == {"forward": 1}
