"""Riemannian gradient descent and Adam by dense matrices."""

import torch

from ._helpers import exp_skewh

REAL_AND_COMPLEX = (torch.float64, torch.complex128)
SECOND_MOMENTS = ("elementwise", "scalar")


def svd_polar(x):
    u, _, vh = torch.linalg.svd(x)
    return u @ vh


def cayley_of(generator):
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype)
    return torch.linalg.solve(eye - generator / 2, eye + generator / 2)


TEXTBOOK = {
    "exponential": lambda x, u: exp_skewh((u @ x.mH - x @ u.mH) / 2) @ x,
    "polar": lambda x, u: svd_polar(x + u),
    "cayley": lambda x, u: cayley_of(u @ x.mH) @ x,
}


def textbook_sgd(
    x, gradient, steps, retraction, lr, momentum=0.0, dampening=0.0, nesterov=False, maximize=False
):
    """Riemannian gradient descent with a momentum buffer in the ambient space."""
    buffer = None
    for _ in range(steps):
        d = -gradient(x) if maximize else gradient(x)
        if momentum:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            d = d + momentum * buffer if nesterov else buffer
        # Rounding would drive it off the manifold, further in each step.
        x = svd_polar(TEXTBOOK[retraction](x, -lr * (d - x @ d.mH @ x) / 2))
    return x


def geodesic_step(x, d, lr):
    """Move x against the tangent part of d."""
    return exp_skewh(-lr * (d @ x.mH - x @ d.mH) / 2) @ x


def textbook_adam(
    x,
    grads,
    lr,
    second_moment,
    betas=(0.9, 0.999),
    eps=1e-8,
    amsgrad=False,
    maximize=False,
):
    """Adam of ambient gradients, |g|² as second moment, geodesic steps."""
    m, v, v_max = torch.zeros_like(x), 0.0, torch.zeros(())
    for t, grad in enumerate(grads, start=1):
        g = -grad if maximize else grad
        square = g.abs() ** 2
        if second_moment == "scalar":
            square = square.sum((-2, -1), keepdim=True)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * square
        v_max = torch.maximum(v_max, v)
        v_hat = (v_max if amsgrad else v) / (1 - betas[1] ** t)
        m_hat = m / (1 - betas[0] ** t)
        x = geodesic_step(x, m_hat / (v_hat.sqrt() + eps), lr)
    return x
