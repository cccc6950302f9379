"""What recurrent layers and cells share: their parameters and where these start."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import assert_flag, assert_known
from ..init import INITS
from ..linalg.modes import is_autocast
from ..low_rank_manifold import low_rank_manifold_of
from ..manifolds import LowRankUnitary
from .arguments import checked_dtype
from .keeping import KeepsManifolds, record_manifolds
from .placing import put_on
from .recurrences.pointwise import parts
from .starting import assert_fits, start_at, steps_of

NONLINEARITIES = ("modrelu", "relu", "tanh")
# torch.compile does not know torch.dtype.to_real.
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class Recurrent(KeepsManifolds):
    """Mixed in before torch's class: unitary recurrent weights, modReLU offsets, inits.

    The names of its parameters tell what they are: ``weight_hh…`` is on a manifold,
    ``weight_ih…`` and ``weight_gates…`` are not, ``bias…`` and ``offset…`` start at 0.
    """

    is_complex: ClassVar[bool]
    hidden_size: int
    nonlinearity: str
    init: str

    def _options(
        self, nonlinearity: str, init: str, dtype: torch.dtype | None, **flags: Any
    ) -> tuple[str, torch.dtype]:
        """Check what torch's class would not, before it builds anything; return what to tell it."""
        for name, value in flags.items():
            assert_flag(name, value)
        assert_known("nonlinearity", nonlinearity, NONLINEARITIES)
        assert_known("init", init, INITS)
        dtype = checked_dtype(self, dtype, self.is_complex, self._counterpart())
        # reset_parameters, which torch's constructor calls, needs it.
        self.init = init
        return ("relu" if nonlinearity == "modrelu" else nonlinearity), dtype

    def _finish(self, nonlinearity: str, manifold: LowRankUnitary, names: list[str]) -> None:
        """Put the recurrent weights on the manifold and add the offsets of a modReLU."""
        self.nonlinearity = nonlinearity
        for name in names:
            weight = getattr(self, name)
            assert_fits(name, self, weight, manifold)
            put_on(weight, manifold)
            if nonlinearity == "modrelu":
                offset = torch.zeros(
                    self.hidden_size, dtype=weight.real.dtype, device=weight.device
                )
                self.register_parameter(
                    name.replace("weight_hh", "offset"), torch.nn.Parameter(offset)
                )
        record_manifolds(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        r"""Draw all parameters anew.

        Recurrent weights by ``init``; other weights uniformly with Glorot's variance
        :math:`E |w|^2 = 2 / (\text{inputs} + \text{outputs})`, which the two parts of a complex
        one share, and by "haar" if they have been put on a manifold; biases and offsets 0.
        """
        for name, p in self.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                start_at(p, self.init)
            elif low_rank_manifold_of(p) is not None:
                start_at(p, "haar")
            elif name.startswith("weight"):
                # A gate has weights of its own, with as many outputs as the state has features.
                fans = p.shape[1] + self.hidden_size
                bound = math.sqrt((3 if self.is_complex else 6) / fans)
                parts(p).uniform_(-bound, bound)
            else:
                p.zero_()

    def _offset(self, suffix: str = "") -> Tensor | None:
        """Return the offset of a modReLU."""
        return getattr(self, f"offset{suffix}") if self.nonlinearity == "modrelu" else None

    def _remedy_for_complex_input(self) -> str:
        counterpart = self._counterpart()
        return f"{f'Use {counterpart}, or give' if counterpart else 'Give'} it a real input"

    def _describe(self, weight: Any) -> str:
        return f", nonlinearity={self.nonlinearity}{steps_of(weight)}, init={self.init}"


def taken_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Take real numbers as complex ones of the same precision, under autocast of any."""
    # A trace would keep a conversion that does nothing, and then take inputs of any dtype.
    if x.dtype == dtype or (x.is_complex() and not dtype.is_complex):
        return x
    if x.dtype == _REAL.get(dtype, dtype) or is_autocast():
        return x.to(dtype)
    return x
