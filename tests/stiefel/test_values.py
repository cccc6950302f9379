"""LowRankStiefel as a value, what it refuses, what it costs; sketches of rectangular points."""

import copy
import pickle

import geoopt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankStiefel, LowRankUnitary
from geoopt_projunn.linalg.rows import IN_TORCH
from geoopt_projunn.sketches import SKETCHES as SKETCH_TABLE
from geoopt_projunn.sketches import exact
from tests._asserts import assert_within
from tests._matrices import RETRACTIONS, SKETCHES, WIDE_DTYPES, skewh

# -- the value that a manifold is ----------------------------------------------------------


def test_manifolds_are_values():
    kinds = [
        LowRankStiefel(1),
        LowRankStiefel(2),
        LowRankStiefel(1, sketch="column"),
        LowRankStiefel(1, blocks=4),
        LowRankUnitary(1),
        LowRankUnitary(1, blocks=4),
    ]
    for i, one in enumerate(kinds):
        for j, other in enumerate(kinds):
            assert (one == other) == (i == j)
        for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert again == one
            assert hash(again) == hash(one)
    assert len(set(kinds)) == len(kinds)
    assert repr(kinds[3]) == (
        "LowRankStiefel(k=1, retraction=exponential, sketch=tangent, blocks=4) manifold"
    )
    assert LowRankStiefel(None).reversible
    assert not LowRankStiefel(1).reversible


ERRORS = [
    (LowRankStiefel(5), (4, 9), r"`k` must satisfy 1 <= k <= min\(p, n // 2\) = 4, got 5; use k=N"),
    (LowRankStiefel(3), (2, 9), r"= 2, got 3"),
    (LowRankStiefel(3), (5, 5), r"= 2, got 3"),
    (LowRankStiefel(1), (5,), r"`x` must have shape \(\*, n, p\), got \(5,\)\."),
    (LowRankStiefel(1), (5, 0), r"must have shape \(\*, n, p\), got \(5, 0\)\."),
    (
        LowRankStiefel(1, blocks=3),
        (8, 2),
        r"`x` must have shape \(\*, 3 n, p\), because it stacks 3 blocks, got \(8, 2\)\.",
    ),
    (LowRankStiefel(2, blocks=3), (9, 2), r"`k` must satisfy .* = 1, got 2"),
    (
        LowRankUnitary(1, blocks=3),
        (8, 2),
        r"`x` must have shape \(\*, 3 n, n\), .*got \(8, 2\); for rectangular .* LowRankStiefel\.",
    ),
    (LowRankUnitary(1), (8, 2), r"must have shape \(\*, n, n\), got \(8, 2\); .*LowRankStiefel"),
]


@pytest.mark.parametrize(("manifold", "shape", "words"), ERRORS)
def test_shapes_and_ranks_that_do_not_fit_are_refused(manifold, shape, words):
    x = torch.zeros(shape)
    for call in (
        lambda: geoopt.ManifoldParameter(x, manifold=manifold),
        lambda: manifold.retr(x, x),
        lambda: manifold.projx(x),
    ):
        with pytest.raises(ValueError, match=words.replace("`x`", "`.*`")):
            call()
    with pytest.raises(ValueError, match=words.replace("`x`", "`size`")):
        manifold.random(shape)


@pytest.mark.parametrize("kind", [LowRankStiefel, LowRankUnitary])
def test_blocks_are_a_positive_integer(kind):
    with pytest.raises(ValueError, match="`blocks` must be at least 1, got 0; use blocks=1"):
        kind(blocks=0)
    with pytest.raises(TypeError, match=r"`blocks` must be an integer, got 2\.0; use blocks=1"):
        kind(blocks=2.0)


def test_messages_name_the_product_that_is_not_the_identity():
    for shape, words in (((4, 2), "`xᴴx != I` by"), ((2, 4), "`xxᴴ != I` by")):
        _, why = LowRankStiefel(1).check_point_on_manifold(torch.ones(shape), explain=True)
        assert words in why
    x = LowRankStiefel(1).origin(2, 4).detach()
    _, why = LowRankStiefel(1).check_vector_on_tangent(x, x, explain=True)
    assert "`xuᴴ + uxᴴ != 0` by" in why


# -- costs and derivatives -----------------------------------------------------------------

STEPS = {
    "egrad2rgrad": lambda m, x, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, u, v: m.retr(x, u),
    "retr_transp": lambda m, x, u, v: m.retr_transp(x, u, v),
}


@pytest.mark.parametrize(
    ("step", "sketch"),
    [
        ("retr", "tangent"),
        ("retr_transp", "tangent"),
        *(("egrad2rgrad", name) for name in SKETCHES),
    ],
)
def test_a_step_costs_knp_flops_whatever_the_shape(sketch, step):
    manifold, per_knp = LowRankStiefel(2, sketch=sketch), []
    for shape in ((2048, 512), (512, 2048), (65536, 64), (64, 65536)):
        with FlopCounterMode(display=False) as counter:
            STEPS[step](manifold, *(torch.empty(shape, device="meta") for _ in range(3)))
        # Beside n p k there is n k², of bases.
        n = max(shape)
        per_knp.append((counter.get_total_flops() - 40 * 4 * n) / (2 * shape[0] * shape[1]))
    assert max(per_knp) < 1.5 * min(per_knp)
    assert max(per_knp) < 200


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("shape", [(5, 2), (2, 4)])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_at_full_rank_steps_have_derivatives(shape, retraction, dtype):
    m = LowRankStiefel(None, retraction=retraction)
    x = m.random(*shape, dtype=dtype).detach().as_subclass(torch.Tensor).requires_grad_()
    y = m.random(*shape, dtype=dtype).detach().as_subclass(torch.Tensor).requires_grad_()
    u, v = (0.3 * torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    for call in (m.retr_transp, m.expmap_transp, m.inner):
        assert torch.autograd.gradcheck(call, (x, u, v))
    for call in (m.egrad2rgrad, m.proju):
        assert torch.autograd.gradcheck(call, (x, u))
    assert torch.autograd.gradcheck(m.transp, (x, y, v))


# -- sketches of rectangular points --------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize(("n", "p"), [(12, 5), (12, 12)])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_direction_of_low_rank_is_sketched_whole(sketch, n, p, dtype):
    """Of rank one, with k = 2: its generator has rank two."""
    x = LowRankStiefel(1).random(3, n, p, dtype=dtype).detach()
    d = torch.randn(3, n, 1, dtype=dtype) @ torch.randn(3, 1, p, dtype=dtype)
    sketched = SKETCH_TABLE[sketch](x, d, 2, torch.tensor([0, 3, 7]))
    generator = sketched.rows.mH @ skewh(sketched.core) @ sketched.rows
    assert_within(generator, skewh(d @ x.mH), 1e-11)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize(("n", "p"), [(12, 5), (8, 8)])
def test_what_a_step_carries_is_all_of_its_generator_but_what_no_direction_has(n, p, dtype):
    x = LowRankStiefel(1).random(2, n, p, dtype=dtype).detach()
    counter = torch.zeros(2, dtype=torch.int64)
    d = torch.randn(2, n, p, dtype=dtype)
    for sketched in (SKETCH_TABLE["tangent"](x, d, 2, counter), exact(x, d)):
        carried = torch.zeros_like(x)
        sketched.add_direction_(carried, x, 0.5, IN_TORCH)
        rows = sketched.rows
        omega = skewh(sketched.core) if rows is None else rows.mH @ skewh(sketched.core) @ rows
        off = torch.eye(n, dtype=dtype) - x @ x.mH
        assert_within(skewh(carried @ x.mH), 0.5 * (omega - off @ omega @ off), 1e-13)
