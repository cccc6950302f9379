"""Every message names the argument, the rule, the value and, where there is one, the remedy."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from tests._matrices import unitary

BAD_DTYPES = [torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]
DTYPE_RULE = (
    r"`{}` must have one of the dtypes float32, float64, complex64, complex128, got torch\.{}"
)


# -- the constructor -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1])
def test_a_rank_below_one_is_refused(k):
    message = rf'`k` must be at least 1, got {k}; use k=None for full rank, or k="auto"'
    with pytest.raises(ValueError, match=message):
        LowRankUnitary(k)


@pytest.mark.parametrize("k", [True, False, 1.0, "1", (1,), torch.tensor(1)])
def test_a_rank_that_is_no_integer_is_refused(k):
    with pytest.raises(
        TypeError, match=r"`k` must be an integer, got .*; use k=None for full rank, or k=\"auto\""
    ):
        LowRankUnitary(k)


@pytest.mark.parametrize("sweep", [True, 0.5, None, "1"])
def test_a_sweep_that_is_no_integer_is_refused(sweep):
    message = r"`sweep` must be an integer, got .*; use sweep=0 to turn drift control off\."
    with pytest.raises(TypeError, match=message):
        LowRankUnitary(sweep=sweep)


def test_a_negative_sweep_is_refused():
    message = r"`sweep` must be at least 0, got -1; use sweep=0 to turn drift control off\."
    with pytest.raises(ValueError, match=message):
        LowRankUnitary(sweep=-1)


@pytest.mark.parametrize("name", ["Polar", "exp", "", None, 3, ["polar"]])
def test_an_unknown_retraction_is_refused(name):
    message = r"`retraction` must be one of 'exponential', 'polar', 'cayley', got .*\."
    with pytest.raises((ValueError, TypeError), match=message):
        LowRankUnitary(retraction=name)


@pytest.mark.parametrize("name", ["LSI", "random", "", None, 3, ["lsi"]])
def test_an_unknown_sketch_is_refused(name):
    message = r"`sketch` must be one of 'tangent', 'lsi', 'column', 'coordinates', got .*\."
    with pytest.raises((ValueError, TypeError), match=message):
        LowRankUnitary(sketch=name)


def test_everything_but_the_rank_is_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        LowRankUnitary(1, "polar")


# -- points --------------------------------------------------------------------------------

SHAPES = [(), (4,), (4, 5), (3, 4, 5), (0, 0), (2, 0, 0)]


def makers(manifold):
    """Everything that takes a point, as a function of it."""
    other = torch.eye(4)
    return {
        "ManifoldParameter": lambda x: geoopt.ManifoldParameter(x, manifold=manifold),
        "ManifoldTensor": lambda x: geoopt.ManifoldTensor(x, manifold=manifold),
        "assert_check_point": manifold.assert_check_point,
        "assert_check_point_on_manifold": manifold.assert_check_point_on_manifold,
        "projx": manifold.projx,
        "orthogonality_error": manifold.orthogonality_error,
        "estimate_orthogonality_error": manifold.estimate_orthogonality_error,
        "proju": lambda x: manifold.proju(x, other),
        "egrad2rgrad": lambda x: manifold.egrad2rgrad(x, other),
        "retr": lambda x: manifold.retr(x, other),
        "expmap": lambda x: manifold.expmap(x, other),
        "logmap": lambda x: manifold.logmap(x, other),
        "dist": lambda x: manifold.dist(x, other),
        "transp": lambda x: manifold.transp(x, other, other),
        "retr_transp": lambda x: manifold.retr_transp(x, other, other),
        "expmap_transp": lambda x: manifold.expmap_transp(x, other, other),
        "transp_follow_retr": lambda x: manifold.transp_follow_retr(x, other, other),
        "transp_follow_expmap": lambda x: manifold.transp_follow_expmap(x, other, other),
    }


takers = pytest.mark.parametrize("taker", makers(LowRankUnitary()))


@takers
@pytest.mark.parametrize("shape", SHAPES)
def test_a_point_that_is_not_square_is_refused(taker, shape):
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*, n, n\), got \(") as info:
        makers(LowRankUnitary())[taker](torch.ones(shape))
    assert f"got {tuple(shape)};" in str(info.value)


@takers
@pytest.mark.parametrize("k", [3, 10])
def test_a_rank_above_half_the_size_is_refused(taker, k):
    message = rf"`k` must satisfy 1 <= k <= n // 2 = 2, got {k}; use k=None for full rank\."
    with pytest.raises(ValueError, match=message):
        makers(LowRankUnitary(k))[taker](torch.eye(5 if k == 3 else 4))


@takers
@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_a_point_of_another_dtype_is_refused(taker, dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=DTYPE_RULE.format("x", name)):
        makers(LowRankUnitary())[taker](torch.ones(4, 4).to(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["random", "origin"])
def test_no_points_that_are_not_square_are_made(method, shape):
    with pytest.raises(ValueError, match=r"`size` must have shape \(\*, n, n\), got \("):
        getattr(LowRankUnitary(), method)(shape)


@pytest.mark.parametrize("method", ["random", "origin"])
def test_no_points_are_made_where_the_rank_is_above_half_the_size(method):
    with pytest.raises(
        ValueError, match=r"`k` must satisfy 1 <= k <= n // 2 = 2, got 3; use k=None"
    ):
        getattr(LowRankUnitary(3), method)(4, 4)


@pytest.mark.parametrize("dtype", BAD_DTYPES)
@pytest.mark.parametrize("method", ["random", "origin"])
def test_no_points_of_another_dtype_are_made(method, dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=DTYPE_RULE.format("dtype", name)):
        getattr(LowRankUnitary(), method)(4, 4, dtype=dtype)


def test_a_cast_to_half_precision_is_refused_and_says_why():
    weight = geoopt.ManifoldParameter(torch.eye(4), manifold=LowRankUnitary())
    message = "half precision cannot hold orthogonality, keep this parameter in float32"
    with pytest.raises(TypeError, match=message):
        geoopt.ManifoldParameter(weight.data.bfloat16(), manifold=LowRankUnitary())


# -- arguments that do not fit the point ---------------------------------------------------

# Each method with the names of its arguments after x.
ARGUMENTS = {
    "proju": "u",
    "egrad2rgrad": "u",
    "retr": "u",
    "expmap": "u",
    "logmap": "y",
    "dist": "y",
    "dist2": "y",
    "transp": "yv",
    "retr_transp": "uv",
    "expmap_transp": "uv",
    "transp_follow_retr": "uv",
    "transp_follow_expmap": "uv",
}
PLACES = [(method, i) for method, names in ARGUMENTS.items() for i in range(len(names))]
places = pytest.mark.parametrize(("method", "place"), PLACES)


def call_with(method, place, bad, x=None):
    x = unitary(2, 4, 4, dtype=torch.float32) if x is None else x
    arguments = [torch.zeros_like(x) for _ in ARGUMENTS[method]]
    arguments[place] = bad
    return getattr(LowRankUnitary(), method)(x, *arguments)


@places
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16, torch.int64])
def test_an_argument_of_another_dtype_than_the_point_is_refused(method, place, dtype):
    name = ARGUMENTS[method][place]
    message = (
        rf"`{name}` must have the dtype of `x`, torch\.float32, got {dtype}; "
        rf"convert it with `{name}\.to\(torch\.float32\)`\."
    )
    with pytest.raises(TypeError, match=message):
        call_with(method, place, torch.zeros(2, 4, 4).to(dtype))


@places
@pytest.mark.parametrize("shape", [(5, 5), (4, 1), (1, 4), (4,), (2, 3, 3), ()])
def test_an_argument_of_another_shape_than_the_point_is_refused(method, place, shape):
    name = ARGUMENTS[method][place]
    message = rf"`{name}` must have shape \(\*, 4, 4\) like `x`, got \("
    with pytest.raises(ValueError, match=message) as info:
        call_with(method, place, torch.zeros(shape))
    assert f"got {tuple(shape)};" in str(info.value)


@places
def test_batches_that_do_not_broadcast_are_refused(method, place):
    with pytest.raises(ValueError, match=r"The batch dimensions must broadcast, got \(2, 4, 4\)"):
        call_with(method, place, torch.zeros(3, 4, 4))


@pytest.mark.parametrize("method", ["inner", "norm", "component_inner"])
def test_lengths_of_vectors_that_do_not_fit_are_refused(method):
    # Plain broadcasting would give a number that means nothing.
    x, u, v = unitary(4, 4), torch.zeros(4, 4).double(), torch.zeros(4, 1).double()
    arguments = (x, v) if method == "norm" else (x, u, v)
    with pytest.raises(ValueError, match=r"must have shape \(\*, 4, 4\)"):
        getattr(LowRankUnitary(), method)(*arguments)


@takers
@pytest.mark.parametrize("k", [2, None])
def test_a_point_that_is_no_tensor_is_refused(taker, k):
    if taker.startswith("Manifold"):
        return  # geoopt's own error
    with pytest.raises(TypeError, match=r"`x` must be a tensor, got list; .*`torch\.as_tensor"):
        makers(LowRankUnitary(k))[taker]([[1.0, 0.0], [0.0, 1.0]])


def test_a_refusal_changes_nothing():
    weight = geoopt.ManifoldParameter(unitary(4, 4), manifold=LowRankUnitary())
    before = weight.detach().clone()
    for bad in (torch.zeros(5, 5).double(), torch.zeros(4, 4)):
        with pytest.raises((ValueError, TypeError), match="`u` must have"):
            weight.retr(bad)
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_point_that_is_not_finite_has_no_projection(value):
    x = torch.eye(4)
    x[1, 2] = value
    with pytest.raises(ValueError, match=r"`x` must be finite.*checkpoint"):
        LowRankUnitary().projx(x)


def test_an_integer_point_is_told_to_become_a_float():
    with pytest.raises(TypeError, match=r"got torch.int64; convert it with `.to\(torch.float32\)`"):
        LowRankUnitary().projx(torch.eye(4).long())


def test_random_refuses_an_unknown_argument():
    with pytest.raises(TypeError, match="dtpe"):
        LowRankUnitary().random(4, 4, dtpe=torch.float64)


@pytest.mark.parametrize("value", [None, 0.5, [[1.0]]])
@pytest.mark.parametrize("name", ["egrad2rgrad", "retr", "proju", "expmap", "logmap", "dist"])
def test_what_is_no_tensor_is_refused(name, value):
    # As the gradient of a parameter that has none yet.
    argument = "y" if name in ("logmap", "dist") else "u"
    with pytest.raises(
        TypeError, match=f"`{argument}` must be a tensor, got {type(value).__name__}"
    ):
        getattr(LowRankUnitary(), name)(unitary(4, 4), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_logarithm_of_what_is_not_finite_is_refused(dtype):
    x = unitary(2, 4, 4, dtype=dtype)
    y = x.clone()
    y[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="`x` and `y` must be finite, but have infinite or NaN"):
        LowRankUnitary().logmap(x, y)


@pytest.mark.parametrize("kind", [LowRankUnitary, LowRankStiefel])
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("k", 0, "`k` must be at least 1, got 0; use k=None"),
        ("k", 2.0, "`k` must be an integer, got 2.0"),
        ("retraction", "Cayley", "`retraction` must be one of .*, got 'Cayley'"),
        ("sketch", "LSI", "`sketch` must be one of .*, got 'LSI'"),
        ("sweep", -1, "`sweep` must be at least 0, got -1; use sweep=0"),
        ("blocks", 0, "`blocks` must be at least 1, got 0"),
    ],
)
def test_an_option_is_checked_whenever_it_is_set(option, value, error, kind):
    with pytest.raises((TypeError, ValueError), match=error):
        kind(**{option: value})
    manifold = kind(k=2)
    before = copy.deepcopy(manifold)
    with pytest.raises((TypeError, ValueError), match=error):
        setattr(manifold, option, value)
    assert manifold == before
