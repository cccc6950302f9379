"""Parameters on such a manifold, and what they keep through copies and files."""

import copy
import io
import pickle

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import DTYPES, eps, polar_reference, tangent_at, unitary

dtypes = pytest.mark.parametrize("dtype", DTYPES)
ranks = pytest.mark.parametrize("k", [1, None])


def test_parameters_accept_tensors_of_an_equal_manifold_only():
    tensor = LowRankUnitary(1).random(4, 4)
    assert geoopt.ManifoldParameter(tensor, manifold=LowRankUnitary(1)).manifold.k == 1
    with pytest.raises(ValueError, match="Manifolds do not match"):
        geoopt.ManifoldParameter(tensor, manifold=LowRankUnitary(2))


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


class Damped(LowRankUnitary):
    """A subclass with an option and a parameter of its own."""

    def __init__(self, k, factor):
        super().__init__(k)
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    @property
    def _factor(self):
        return float(self.factor)


def test_manifolds_of_a_subclass_are_told_apart():
    slow, fast = Damped(2, 1.0), Damped(2, 3.0)
    assert slow != fast
    assert LowRankUnitary(2) == LowRankUnitary(2) != slow
    assert len(list(torch.nn.ModuleList([slow, fast]).parameters())) == 2
    params = [geoopt.ManifoldParameter(torch.eye(4), manifold=m) for m in (slow, fast)]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.01)
    for p in params:
        p.grad = torch.arange(16.0).view(4, 4)
    optimizer.step()
    moved = [float((p.detach() - torch.eye(4)).norm()) for p in params]
    assert moved[1] > 2.5 * moved[0] > 0.1
