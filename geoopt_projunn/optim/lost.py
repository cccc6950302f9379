"""Plain parameters that look as if something had dropped their manifold."""

import math
from typing import Any

import torch

from ..linalg.dense import estimate_orthogonality_error
from ..linalg.precision import WIDE
from .kinds import manifold_of
from .messages import capitalized, described, warn
from .state import OFF_MANIFOLD


def look_for_lost_manifolds(groups: list[dict[str, Any]]) -> None:
    """Warn of plain square parameters that are unitary to rounding: steps will not keep them so.

    One probe of :math:`O(n^2)` for each; the host waits for it. A sharded parameter is gathered
    first.

    Raises
    ------
    TypeError
        If torch.distributed.fsdp.FullyShardedDataParallel has flattened a matrix on a manifold
        into a vector.
    """
    for group in groups:
        for p in group["params"]:
            _assert_not_flattened(p)
            if manifold_of(p) is None and _is_unitary(p):
                warn(
                    f"{capitalized(described(p, group))} is orthogonal to rounding, but a plain "
                    "parameter: steps will not keep it so. If it should be on LowRankUnitary, a "
                    "conversion, a load or a wrapper dropped its manifold: make it a "
                    "`geoopt.ManifoldParameter` again, or its weight by "
                    "`geoopt_projunn.nn.orthogonalize_`, before the optimizer is made. If it is "
                    "meant to be plain, ignore this."
                )


def _assert_not_flattened(p: torch.Tensor) -> None:
    for info in getattr(p, "_param_infos", ()):
        # Our modules, and those treated by orthogonalize_, keep a record in place of a dict.
        if hasattr(info.module._parameters, "manifolds"):
            raise TypeError(
                f"The parameters of {type(info.module).__name__} `{info.module_name}` must stay "
                "on their manifolds, but FullyShardedDataParallel has made a vector of them; name "
                "this module in its `ignored_modules`."
            )


def _is_unitary(p: torch.Tensor) -> bool:
    is_square = p.dim() >= 2 and p.shape[-1] == p.shape[-2] >= 2 and p.numel() > 0
    if not (is_square and p.requires_grad and p.dtype in WIDE and p.layout == torch.strided):
        return False
    x = p.detach()
    if hasattr(x, "full_tensor"):
        x = x.full_tensor()
    if x.is_meta:
        return False
    error = float(estimate_orthogonality_error(x).max()) / math.sqrt(x.shape[-1])
    return error <= OFF_MANIFOLD
