"""What the defaults rest on: how rank-k steps learn, at a small size."""

import statistics

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.linalg.dense import haar, skewh

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


def direction_with_large_normal_part(n, k, dtype):
    """Return a point and a gradient whose k leading singular directions are normal."""
    x, basis = haar(n, n, dtype=dtype), haar(n, n, dtype=dtype)
    spectrum = torch.linspace(100.0, 50.0, n, dtype=torch.float64).to(dtype)
    rest = basis[:, k:]
    tangent = rest @ skewh(torch.randn(n - k, n - k, dtype=dtype)) @ rest.mH
    return x, (basis * spectrum @ basis.mH + tangent) @ x


def moved(x, d, k, lr, sketch="tangent"):
    p = geoopt.ManifoldParameter(x.clone(), manifold=LowRankUnitary(k, sketch=sketch))
    optimizer = ProjUNNRiemannianSGD([p], lr=lr)
    p.grad = d.clone()
    optimizer.step()
    return p.detach()


def inner(a, b):
    return float((a.conj() * b).sum().real)


@pytest.mark.parametrize("k", [1, 2, 4])
@each_dtype
def test_a_step_descends_where_the_best_approximation_of_the_gradient_does_not(dtype, k):
    n, lr = 16, 1e-5
    torch.manual_seed(0)
    x, d = direction_with_large_normal_part(n, k, dtype)
    tangent_part = torch.linalg.matrix_norm(skewh(d @ x.mH)) ** 2
    u, s, vh = torch.linalg.svd(d)
    of_best_approximation = skewh((u[:, :k] * s[:k]) @ vh[:k] @ x.mH)
    # The slope of the loss Re tr(dᴴx) along each step; that of the full gradient is -tangent_part.
    ambient = inner(d, -of_best_approximation @ x) / tangent_part
    ours = inner(d, moved(x, d, k, lr) - x) / lr / tangent_part
    assert ours < -k / n
    assert abs(ambient) < 1e-3 * k / n


@pytest.mark.parametrize("sketch", ["lsi", "column"])
def test_with_a_large_residual_rank_one_arrives_where_the_papers_sketches_do_not(sketch):
    n, steps = 16, 400
    torch.manual_seed(0)
    a = torch.randn(n, 2 * n, dtype=torch.float64) / (2 * n) ** 0.5
    b = haar(n, n, dtype=torch.float64) @ a + 2 * torch.randn_like(a) / (2 * n) ** 0.5
    u, s, vh = torch.linalg.svd(b @ a.mT)
    s[-1] *= torch.linalg.slogdet(u @ vh).sign
    least = 0.5 * (a.square().sum() + b.square().sum()) - s.sum()

    def suboptimality(name, lr):
        p = geoopt.ManifoldParameter(
            torch.eye(n, dtype=torch.float64), manifold=LowRankUnitary(k=1, sketch=name)
        )
        optimizer = ProjUNNRiemannianSGD([p], lr=lr)
        for _ in range(steps):
            p.grad = (p.detach() @ a - b) @ a.mT
            optimizer.step()
        return float(0.5 * (p.detach() @ a - b).square().sum() - least)

    rates = (0.03, 0.1, 0.3)
    ours = min(suboptimality("tangent", lr) for lr in rates)
    theirs = min(suboptimality(sketch, lr) for lr in rates)
    assert ours < theirs / 30


def test_rank_four_with_nesterov_keeps_up_with_full_rank_on_small_batches():
    """Steps to a hundredth of the loss, each at its best rate: at most a quarter more."""
    n, batch, most = 64, 8, 400

    def steps(k, lr, seed):
        draws = torch.Generator().manual_seed(seed)

        def orthogonal():
            q, _ = torch.linalg.qr(torch.randn(n, n, generator=draws))
            q[:, 0] *= torch.linalg.slogdet(q).sign
            return q

        target, start = orthogonal(), orthogonal()
        root = orthogonal() * torch.logspace(0, -1, n)
        p = geoopt.ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
        optimizer = ProjUNNRiemannianSGD([p], lr=lr, momentum=0.9, nesterov=True)
        first = torch.linalg.matrix_norm((start - target) @ root)
        for step in range(most):
            off = p.detach() - target
            if torch.linalg.matrix_norm(off @ root) < 0.1 * first:
                return step
            x = root @ torch.randn(n, batch, generator=draws)
            p.grad = off @ x @ x.mT / batch
            optimizer.step()
        return most

    def fewest(k):
        return min(statistics.median(steps(k, lr, seed) for seed in range(3)) for lr in (0.18, 0.3))

    full, rank_four, rank_one = fewest(None), fewest(4), fewest(1)
    assert full < rank_one < most
    assert rank_four <= 1.25 * full
