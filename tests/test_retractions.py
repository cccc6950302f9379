import mpmath
import pytest
import torch

from geoopt_projunn.retractions import RETRACTIONS, polar
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import WIDE_DTYPES, eye_like, retraction_reference, skew, skewh
from tests._modes import Recorder

dtypes = pytest.mark.parametrize("dtype", WIDE_DTYPES)

pytestmark = pytest.mark.usefixtures("each_way", "without_gradients")


def all_retractions(test):
    return pytest.mark.parametrize("name", RETRACTIONS)(dtypes(test))


NORMS = [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0, 100.0]
LONG = [1e3, 1e6, 1e9, 1e12]


def general(*size, norm, dtype):
    """A core as the ambient sketches make them: neither skew nor Hermitian."""
    core = torch.randn(*size, dtype=dtype)
    return norm * core / torch.linalg.matrix_norm(core, keepdim=True)


def rank_one(*size, norm, dtype):
    core = torch.randn(*size[:-1], 1, dtype=dtype) @ torch.randn(
        *size[:-2], 1, size[-1], dtype=dtype
    )
    return norm * core / torch.linalg.matrix_norm(core, keepdim=True)


def one_plane(*size, norm, dtype):
    return skewh(rank_one(*size, norm=norm, dtype=dtype))


KINDS = [skew, general, rank_one, one_plane]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def assert_delta_is_unitary(delta):
    """P = I + delta is unitary: PᴴP − I = delta + deltaᴴ + deltaᴴ delta."""
    assert_within(delta + delta.mH + delta.mH @ delta, 0, 1e-13)


@all_retractions
@kinds
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2, 3, 4, 4), (8, 8)])
def test_p_is_that_of_the_textbook(name, dtype, size, kind):
    if size[-1] == 1 and not dtype.is_complex:
        kind = general  # there is no other real 1 x 1 skew matrix than zero
    for norm in NORMS:
        core = kind(*size, norm=norm, dtype=dtype)
        if name == "polar" and torch.linalg.svdvals(eye_like(core) + core).min() < 1e-3:
            # The polar factor of a nearly singular I + K is ill conditioned; I - K is not.
            core = -core
        delta = RETRACTIONS[name](core)
        assert_delta_is_unitary(delta)
        assert_within(eye_like(core) + delta, retraction_reference(name, core), 1e-12)


def in_forty_digits(name, core):
    """P − I by the textbook's formulas, in 40 digits."""
    with mpmath.workdps(40):
        k = mpmath.matrix(core.tolist())
        eye = mpmath.eye(core.shape[-1])
        s = (k - k.transpose_conj()) / 2
        if name == "exponential":
            p = mpmath.expm(s, method="taylor")
        elif name == "cayley":
            p = mpmath.inverse(eye - s / 2) * (eye + s / 2)
        else:
            u, _, v = mpmath.svd_c(eye + k)
            p = u * v
        delta = [complex(entry) for entry in p - eye]
    delta = torch.tensor(delta, dtype=torch.complex128).view(core.shape)
    return delta if core.is_complex() else delta.real


@all_retractions
@kinds
@pytest.mark.parametrize("norm", [1e-14, 1e-12, 1e-10, 1e-8, 1e-5, 1e-2, 1.0])
def test_short_steps_keep_all_their_digits(name, dtype, norm, kind):
    core = kind(4, 4, norm=norm, dtype=dtype)
    assert_within(RETRACTIONS[name](core), in_forty_digits(name, core), 1e-12 * norm)


@all_retractions
@kinds
@pytest.mark.parametrize("norm", LONG)
def test_p_is_unitary_however_long_the_step(name, dtype, norm, kind):
    for r in (2, 3, 4, 8):
        assert_delta_is_unitary(RETRACTIONS[name](kind(20, r, r, norm=norm, dtype=dtype)))


@all_retractions
@pytest.mark.parametrize("r", [2, 4])
def test_planes_of_very_different_speed_leave_p_unitary(name, dtype, r):
    fast, slow = skew(5, r, r, norm=1e8, dtype=dtype), skew(5, r, r, norm=1e-8, dtype=dtype)
    core = torch.zeros(5, 2 * r, 2 * r, dtype=dtype)
    core[:, :r, :r], core[:, r:, r:] = fast, slow
    delta = RETRACTIONS[name](core)
    assert_delta_is_unitary(delta)
    if name != "exponential":  # which shortens a generator of more than 27 turns as a whole
        assert_within(delta[:, r:, r:], RETRACTIONS[name](slow), 1e-13)


@all_retractions
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (2, 3, 4, 4), (2, 0, 0), (0, 0), (0, 3, 3)])
def test_a_zero_core_moves_nothing(name, dtype, size):
    assert not RETRACTIONS[name](torch.zeros(*size, dtype=dtype)).any()


@all_retractions
def test_a_batch_is_its_members_one_by_one(name, dtype):
    core = general(2, 3, 4, 4, norm=1.0, dtype=dtype)
    core[1, 1] = 0
    one_by_one = torch.stack([RETRACTIONS[name](k) for k in core.view(6, 4, 4)])
    assert_within(RETRACTIONS[name](core), one_by_one.view_as(core), 1e-15)


@all_retractions
def test_the_first_order_is_the_skew_part_of_the_core(name, dtype):
    core = general(4, 4, norm=1.0, dtype=dtype)
    for h in (1e-3, 1e-5):
        assert_within(RETRACTIONS[name](h * core) / h, skewh(core), h)


@all_retractions
def test_only_the_skew_part_counts_but_for_polar(name, dtype):
    core = general(4, 4, norm=1.0, dtype=dtype)
    delta, skew_only = RETRACTIONS[name](core), RETRACTIONS[name](skewh(core))
    if name == "polar":
        assert (delta - skew_only).abs().max() > 1e-3
    else:
        assert_bit_equal(delta, skew_only)


@all_retractions
def test_the_inverse_step_undoes_the_step(name, dtype):
    s = skew(4, 4, norm=2.0, dtype=dtype)
    there, back = (RETRACTIONS[name](k) + eye_like(s) for k in (s, -s))
    assert_within(there @ back, eye_like(s), 1e-14)


@all_retractions
def test_the_core_is_left_as_it_was(name, dtype):
    core = general(2, 4, 4, norm=1.0, dtype=dtype)
    before = core.clone()
    RETRACTIONS[name](core)
    assert_bit_equal(core, before)


@all_retractions
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_core_that_is_not_finite_shows_and_stays_in_its_slice(name, dtype, bad):
    core = general(2, 4, 4, norm=1.0, dtype=dtype)
    good = RETRACTIONS[name](core)
    core[0, 1, 2] = bad
    delta = RETRACTIONS[name](core)
    assert not delta[0].isfinite().all()
    assert_bit_equal(delta[1], good[1])


@all_retractions
def test_nothing_waits_for_the_device(name, dtype):
    with Recorder() as recorder:
        RETRACTIONS[name](torch.zeros(2, 4, 4, dtype=dtype))
        RETRACTIONS[name](torch.empty(2, 4, 4, dtype=dtype, device="meta"))
    assert not recorder.forbidden


# Singular I + K: what a step that exactly cancels a direction of x gives.
@dtypes
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_polar_of_a_singular_matrix_is_one_of_its_nearest_unitary_matrices(dtype, rank):
    left, right = (torch.randn(5, 4, max(rank, 1), dtype=dtype) for _ in range(2))
    a = left @ right.mH if rank else torch.zeros(5, 4, 4, dtype=dtype)
    p = polar(a - eye_like(a)) + eye_like(a)
    assert_delta_is_unitary(p - eye_like(a))
    # ‖A − P‖² = ‖A‖² + r − 2 Re tr(AᴴP), and no P has more than the nuclear norm of A.
    nuclear = torch.linalg.svdvals(a).sum(-1)
    assert_within((a.conj() * p).sum((-2, -1)).real, nuclear, 1e-13 * (1 + nuclear.max().item()))


@all_retractions
def test_the_derivative_at_zero_is_the_skew_part(name, dtype):
    # The full-rank step takes its derivative through here, and a gradient of zero is a start.
    core = torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 3, 3, dtype=dtype)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(RETRACTIONS[name](core), core, weights)
    assert_within(grad, skewh(weights), 1e-12)


@all_retractions
def test_the_second_derivative_at_zero_is_that_of_the_exponential(name, dtype):
    """Of skew cores, on which all retractions agree to second order."""

    def curve(function, direction, weights):
        def along(t):
            return (weights.conj() * function(skewh(direction * t))).real.sum()

        (first,) = torch.autograd.grad(along(t), t, create_graph=True)
        (second,) = torch.autograd.grad(first, t)
        return second

    weights = torch.randn(3, 3, dtype=dtype)
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        for direction in torch.randn(4, 3, 3, dtype=dtype):
            second = curve(RETRACTIONS[name], direction, weights)
            expected = curve(torch.linalg.matrix_exp, direction, weights)
            assert_within(second, expected, 1e-12)


class OnAGpu(torch.Tensor):
    """What says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("name", ["cayley", "polar"])
@pytest.mark.parametrize(("r", "most"), [(16, 40), (18, 16)])
def test_on_a_gpu_large_systems_are_solved_in_small_batches(monkeypatch, name, r, most):
    """Else a library solves them that waits for the GPU."""
    counts, solve = [], torch.linalg.solve_ex

    def counting(a, b):
        counts.append(len(a))
        return solve(a, b)

    core = skew(40, r, r, norm=0.3)
    expected = RETRACTIONS[name](core)
    monkeypatch.setattr(torch.linalg, "solve_ex", counting)
    actual = RETRACTIONS[name](core.as_subclass(OnAGpu))
    assert max(counts) == most
    assert_within(actual.as_subclass(torch.Tensor), expected, 1e-15)
