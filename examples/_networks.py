"""Recurrent networks and the optimizers that train them."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN, RealReadout, UnitaryRNN

NONLINEARITIES = ("modrelu", "relu", "tanh")
# Those whose recurrent matrices take steps of a rank.
RANKED = ("orthogonal", "unitary", "orthogonal gru")
NETWORKS = (*RANKED, "frozen", "lstm", "gru")


@dataclass(frozen=True)
class Network:
    """A named way to make a model and its optimizer."""

    label: str
    build: Callable[[], tuple["Model", torch.optim.Optimizer]]


class Model(torch.nn.Module):
    """A recurrent layer and a linear readout of its states, all of them or the last."""

    def __init__(self, layer: torch.nn.Module, readout: torch.nn.Module, last: bool) -> None:
        super().__init__()
        self.layer, self.readout, self.last = layer, readout, last

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.readout(states[-1] if self.last else states)

    def recurrent(self) -> list[torch.nn.Parameter]:
        """Return the recurrent matrix of every layer."""
        named = self.layer.named_parameters()
        return [weight for name, weight in named if name.startswith("weight_hh")]

    @torch.no_grad()
    def orthogonality_error(self) -> float | None:
        """Return the largest ‖WᴴW − I‖ of a recurrent matrix; None for those with gates."""
        errors = []
        for weight in self.recurrent():
            if weight.shape[0] != weight.shape[1]:  # torch's LSTM and GRU
                return None
            wide = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
            errors.append(float(torch.linalg.matrix_norm(wide.mH @ wide - torch.eye(len(wide)))))
        return max(errors)


def adam(
    model: Model,
    lr: float,
    recurrent_lr: float,
    betas: tuple[float, float],
    angle: float | None = None,
    second_moment: str = "mean",
) -> ProjUNNRiemannianAdam:
    """Return one optimizer for everything trained, with a rate of its own for recurrent matrices.

    Adam's direction of an n x n matrix has a norm of about n, so that the rate that suits the other
    weights turns a recurrent matrix too far. With an angle its steps are in radians.
    """
    recurrent = model.recurrent()
    rest = [p for p in model.parameters() if all(p is not one for one in recurrent)]
    turned = {"params": recurrent, "lr": recurrent_lr, "second_moment": second_moment}
    if angle is not None:
        turned.update(lr=angle, normalize="angle")
    return ProjUNNRiemannianAdam([{"params": rest, "lr": lr}, turned], betas=betas)


def networks(options: argparse.Namespace, inputs: int, outputs: int, last: bool) -> list[Network]:
    """Return the networks that the options name, those trained on a manifold for every rank.

    A frozen one keeps the recurrent matrices that it starts with and trains all else: what it
    reaches is no merit of the steps.
    """
    hidden, betas = options.hidden, (options.momentum, options.smoothing)
    layers = {"num_layers": options.layers}
    kind = {"nonlinearity": options.nonlinearity, "init": options.init, **layers}

    def at_rank(layer: type, readout: type, k: int | None) -> tuple[Model, torch.optim.Optimizer]:
        model = Model(layer(inputs, hidden, k=k, **kind), readout(hidden, outputs), last)
        kinds = options.angle, options.second_moment
        return model, adam(model, options.lr, options.recurrent_lr, betas, *kinds)

    def torchs(layer: type) -> tuple[Model, torch.optim.Optimizer]:
        model = Model(layer(inputs, hidden, **layers), torch.nn.Linear(hidden, outputs), last)
        return model, torch.optim.Adam(model.parameters(), options.lr, betas)

    def frozen() -> tuple[Model, torch.optim.Optimizer]:
        layer = OrthogonalRNN(inputs, hidden, **kind)
        model = Model(layer, torch.nn.Linear(hidden, outputs), last)
        for weight in model.recurrent():
            weight.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.Adam(trained, options.lr, betas)

    single = {
        "frozen": ("orthogonal, frozen", frozen),
        "lstm": ("LSTM", partial(torchs, torch.nn.LSTM)),
        "gru": ("GRU", partial(torchs, torch.nn.GRU)),
    }
    ranked = {
        "orthogonal": ("orthogonal", OrthogonalRNN, torch.nn.Linear),
        "unitary": ("unitary", UnitaryRNN, RealReadout),
        "orthogonal gru": ("orthogonal GRU", OrthogonalGRU, torch.nn.Linear),
    }
    chosen = []
    for name in options.networks:
        if name in single:
            chosen.append(Network(*single[name]))
            continue
        label, *parts = ranked[name]
        for k in options.k:
            rank_label = "full rank" if k is None else f"k = {k}"
            chosen.append(Network(f"{label}, {rank_label}", partial(at_rank, *parts, k)))
    return chosen
