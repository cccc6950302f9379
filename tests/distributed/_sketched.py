"""Optimizers, manifolds and shapes of which sketches of gradients are averaged."""

import torch
from torch import distributed

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
)

N = 20


SETTINGS = {
    "gradient": ({}, LowRankUnitary(k=1), (N, N)),
    "momentum": ({"momentum": 0.9, "dampening": 0.5}, LowRankUnitary(k=3), (N, N)),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, LowRankUnitary(k=2, sketch="lsi"), (N, N)),
    "feedback": ({"momentum": 0.5, "error_feedback": 0.9}, LowRankUnitary(k=2), (N, N)),
    "spectral": ({"momentum": 0.9, "normalize": "spectral"}, LowRankUnitary(k=2), (N, N)),
    "wide": ({"momentum": 0.9}, LowRankStiefel(k=2), (8, N)),
    "blocks": ({"momentum": 0.9}, LowRankUnitary(k=2, blocks=2), (2 * N, N)),
    "tall, feedback": ({"error_feedback": 0.5}, LowRankStiefel(k=1), (N, 8)),
}


def own_generator():
    return torch.Generator().manual_seed(distributed.get_rank())


def gradient(generator, shape, dtype=torch.float64):
    """Return one that differs from process to process."""
    return torch.randn(shape, generator=generator, dtype=dtype)
