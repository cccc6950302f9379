"""Riemannian gradient descent by dense matrices."""

import torch

from ._helpers import exp_skewh

REAL_AND_COMPLEX = (torch.float64, torch.complex128)


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
        x = TEXTBOOK[retraction](x, -lr * (d - x @ d.mH @ x) / 2)
    return x
