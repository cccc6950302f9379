"""geoopt's own optimizers and samplers train matrices on this manifold."""

import math

import geoopt
import numpy as np
import pytest
import scipy.special
import torch
from geoopt.optim import RiemannianAdam, RiemannianLineSearch, RiemannianSGD
from geoopt.samplers import RHMC, RSGLD

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_within
from tests._matrices import (
    RETRACTIONS,
    SKETCHES,
    WIDE_DTYPES,
    eps,
    exponential_reference,
    skew,
    unitary,
    wide,
)
from tests._modes import Recorder

N = 8
ranks = pytest.mark.parametrize("k", [1, None])
both_kinds = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])


class Procrustes:
    """½‖WA − B‖² with B = W*A, from a start that W* is in reach of."""

    def __init__(self, manifold, dtype, far=1.5):
        values = torch.linspace(0.8, 1.2, N, dtype=torch.float64).to(wide(dtype))
        a = unitary(N, N, dtype=wide(dtype)) @ values.diag() @ unitary(N, N, dtype=wide(dtype))
        self.solution = unitary(N, N, dtype=wide(dtype))
        start = exponential_reference(skew(N, N, norm=far, dtype=wide(dtype))) @ self.solution
        self.a, self.b = a.to(dtype), (self.solution @ a).to(dtype)
        self.weight = geoopt.ManifoldParameter(start.to(dtype), manifold=manifold)
        self.before = self.loss().item()

    def loss(self):
        return (self.weight @ self.a - self.b).abs().square().sum() / 2

    def closure(self):
        self.weight.grad = None
        loss = self.loss()
        loss.backward()
        return loss.item()

    def train(self, optimizer, steps, schedule=None):
        for _ in range(steps):
            self.closure()
            optimizer.step()
            if schedule:
                schedule.step()
        return self

    def assert_solved(self, steps, reduction=1e-8):
        assert self.loss().item() <= reduction * self.before
        off = torch.linalg.matrix_norm(self.weight.mH @ self.weight - torch.eye(N))
        # Without drift control rounding adds up as in a random walk.
        assert_within(off, 0, 10 * math.sqrt(steps) * eps(self.weight.dtype))


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}, {"stabilize": 10}],
    ids=["plain", "momentum", "nesterov", "stabilize"],
)
@ranks
@both_kinds
def test_riemannian_sgd_solves_procrustes(options, k, dtype):
    problem = Procrustes(LowRankUnitary(k), dtype)
    problem.train(RiemannianSGD([problem.weight], lr=0.5, **options), 300)
    problem.assert_solved(300)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_riemannian_sgd_solves_procrustes_with_every_variant(retraction, sketch):
    problem = Procrustes(LowRankUnitary(3, retraction=retraction, sketch=sketch), torch.complex64)
    problem.train(RiemannianSGD([problem.weight], lr=0.5), 200)
    problem.assert_solved(200)


class ProjectingAdam(RiemannianAdam):
    """Projects after every step, as on geoopt's main branch."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.copy_(p.manifold.projx(p))
        return loss


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(RiemannianAdam, {}), (RiemannianAdam, {"stabilize": 7}), (ProjectingAdam, {})],
    ids=["plain", "stabilize", "projecting"],
)
@ranks
@both_kinds
def test_riemannian_adam_solves_procrustes(optimizer, options, k, dtype):
    problem = Procrustes(LowRankUnitary(k), dtype)
    adam = optimizer([problem.weight], lr=0.3, betas=(0.5, 0.9), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.97)
    problem.train(adam, 300, schedule).assert_solved(300, reduction=1e-6)


@ranks
def test_riemannian_adam_with_amsgrad_solves_procrustes(k):
    # Real only: geoopt keeps the second moment in the parameter's dtype, and torch has no
    # maximum of complex numbers.
    problem = Procrustes(LowRankUnitary(k), torch.float32)
    adam = RiemannianAdam([problem.weight], lr=0.5, betas=(0.5, 0.9), amsgrad=True)
    problem.train(adam, 300).assert_solved(300, reduction=1e-6)


@both_kinds
def test_projecting_after_every_step_seldom_needs_a_decomposition(dtype):
    problem = Procrustes(LowRankUnitary(1), dtype)
    adam = ProjectingAdam([problem.weight], lr=0.1)
    decompositions = 0
    for _ in range(50):
        problem.closure()
        with Recorder() as recorder:
            adam.step()
        decompositions += "_linalg_svd" in recorder.operations
    assert decompositions <= 5


@pytest.mark.parametrize("cg_method", ["steepest", "pr"])
@pytest.mark.parametrize("line_search", ["armijo", "wolfe"])
@pytest.mark.parametrize("k", [3, None])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_riemannian_line_search_solves_procrustes(line_search, cg_method, k, dtype):
    problem = Procrustes(LowRankUnitary(k), dtype)
    search = RiemannianLineSearch(
        [problem.weight], line_search_method=line_search, cg_method=cg_method
    )
    for _ in range(60):
        search.step(problem.closure)
        if problem.loss() < 1e-9 * problem.before:
            break  # geoopt warns where rounding leaves no step to take
    problem.assert_solved(60, reduction=1e-9)


@pytest.mark.parametrize("line_search", ["armijo", "wolfe"])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_steepest_descent_by_line_search_works_at_rank_one(line_search, dtype):
    problem = Procrustes(LowRankUnitary(1), dtype)
    search = RiemannianLineSearch(
        [problem.weight], line_search_method=line_search, cg_method="steepest"
    )
    for _ in range(60):
        search.step(problem.closure)
    problem.assert_solved(60, reduction=1e-6)


# -- samplers ------------------------------------------------------------------------------

# On the circle SO(2) the density exp(tr x) is von Mises': exp(2 cos θ).
CONCENTRATION = 2.0
MEAN_COSINE = scipy.special.i1(CONCENTRATION) / scipy.special.i0(CONCENTRATION)


def chains(count, dtype=torch.float32):
    manifold = LowRankUnitary(None)
    return geoopt.ManifoldParameter(manifold.origin(count, 2, 2, dtype=dtype), manifold=manifold)


def density(x):
    return lambda: x.diagonal(dim1=-2, dim2=-1).real.sum()


def mean_cosine(x, sampler, steps, burn_in):
    """The mean over chains and steps, with its standard error over chains."""
    kept = []
    for step in range(steps):
        sampler.step(density(x))
        if step >= burn_in:
            kept.append(x.detach().diagonal(dim1=-2, dim2=-1).real.mean(-1))
    per_chain = torch.stack(kept).mean(0)
    return per_chain.mean(), per_chain.std() / math.sqrt(len(per_chain))


def assert_on_manifold(x, steps):
    off = torch.linalg.matrix_norm(x.mH @ x - torch.eye(x.shape[-1]))
    assert_within(off, 0, 10 * math.sqrt(steps) * eps(x.dtype))


def test_langevin_dynamics_samples_the_density():
    x = chains(400)
    mean, error = mean_cosine(x, RSGLD([x], epsilon=0.05), 300, burn_in=100)
    # A step of size epsilon biases the law by as much.
    assert (mean - MEAN_COSINE).abs() < 4 * error + 0.05 * MEAN_COSINE
    assert error < 0.02
    assert_on_manifold(x, 300)


def test_hamiltonian_monte_carlo_samples_the_density():
    np.random.seed(0)  # noqa: NPY002 - what RHMC accepts proposals by
    x = chains(400)
    sampler = RHMC([x], epsilon=0.05, n_steps=8)
    mean, error = mean_cosine(x, sampler, 100, burn_in=30)
    assert (mean - MEAN_COSINE).abs() < 4 * error
    assert error < 0.02
    assert_on_manifold(x, 800)


def test_langevin_dynamics_stays_on_the_complex_manifold():
    # The law is not tested: torch's complex noise has half the variance in each direction that
    # the sampler counts on. RHMC squares momenta without a modulus and fails on complex ones.
    x = chains(10, torch.complex64)
    start = x.detach().clone()
    sampler = RSGLD([x], epsilon=0.1)
    for _ in range(50):
        sampler.step(density(x))
    assert_on_manifold(x, 50)
    assert (x - start).abs().max() > 0.1


@pytest.mark.parametrize("sampler", [RSGLD, RHMC])
def test_samplers_refuse_a_truncated_manifold(sampler):
    manifold = LowRankUnitary(1)
    x = geoopt.ManifoldParameter(manifold.origin(2, 2), manifold=manifold)
    with pytest.raises(ValueError, match="reversible"):
        sampler([x])


def test_geoopt_descends_where_fixed_test_vectors_would_stall():
    # A large residual and momentum: with the same test vectors in every step the suboptimality
    # stays near 1e-3.
    torch.manual_seed(0)
    n = 32
    a = torch.randn(n, 2 * n, dtype=torch.float64) / (2 * n) ** 0.5
    b = 2 * torch.randn(n, 2 * n, dtype=torch.float64) / (2 * n) ** 0.5 + a
    gram, cross = a @ a.mT, b @ a.mT
    u, s, vh = torch.linalg.svd(cross)
    s[-1] *= torch.linalg.slogdet(u @ vh).sign
    manifold = LowRankUnitary(1)
    w = geoopt.ManifoldParameter(torch.eye(n, dtype=torch.float64), manifold=manifold)
    optimizer = geoopt.optim.RiemannianSGD([w], lr=0.05, momentum=0.9)
    for _ in range(2000):
        w.grad = w.detach() @ gram - cross
        optimizer.step()
    gain = (w.detach() * cross).sum()
    assert (s.sum() - gain) / s.sum() < 1e-6


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_no_row_of_a_gradient_decides_alone_which_part_a_step_follows(sketch, dtype):
    """An input feature that is always zero has a row of the gradient that is."""
    manifold = LowRankUnitary(2, sketch=sketch)
    x, u = manifold.random(8, 8, dtype=dtype), torch.randn(2, 8, 8, dtype=dtype)
    u[:, 0] = 0
    followed = [manifold.egrad2rgrad(x, one) for one in (u[0], u[0] + 1e-9 * u[1], -u[0])]
    assert (followed[0] - followed[1]).abs().max() > 1e-3
    assert_within(followed[2], -followed[0], 1e-12)
