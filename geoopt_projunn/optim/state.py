"""The state of a parameter on LowRankUnitary: how it begins, and what a load makes of it."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..linalg.dense import estimate_orthogonality_error
from ..manifold import LowRankUnitary
from .kinds import manifold_of
from .messages import capitalized, described
from .rules import Buffers, UpdateRule

OFF_MANIFOLD = 1e-4
"""The largest ‖xᴴx − I‖ / √n to step from: above the error of float32 data and of any init."""


def first_state(
    p: torch.Tensor,
    manifold: LowRankUnitary,
    rule: UpdateRule,
    group: Mapping[str, Any],
    found: Mapping[str, Any],
) -> Buffers:
    """Return the state of a parameter that this optimizer has not stepped yet.

    What another optimizer left there, such as torch's and geoopt's Adam, is taken over where it has
    the name and the shape of ours, together with the number of its steps.
    """
    batch = p.shape[:-2]
    fresh = rule.first_buffers(p.detach(), group)
    taken_over = {
        name: value
        for name, value in found.items()
        if name in fresh and (value.shape, value.dtype) == (fresh[name].shape, fresh[name].dtype)
    }
    # torch's SGD counts no steps; this one damps the gradient at the first.
    steps = int(found.get("step", 1)) if taken_over else 0
    return {
        "step": torch.full(batch, steps, dtype=torch.int64, device=p.device),
        # Of a floating dtype, which is what torch makes of it when a checkpoint is loaded.
        "skipped": torch.zeros(batch, dtype=p.dtype.to_real(), device=p.device),
        **fresh,
        **taken_over,
    }


def probe(p: torch.Tensor, manifold: LowRankUnitary, group: Mapping[str, Any]) -> None:
    """Raise an error unless a parameter is on its manifold: :math:`O(n^2)`, and the host waits.

    Raises
    ------
    ValueError
        If it is not on the manifold.
    TypeError
        If its dtype is not supported.
    """
    manifold.assert_check_point(p)
    if hasattr(p, "placements"):
        raise TypeError(
            f"{capitalized(described(p, group))} on {manifold} must be a tensor of one device, but "
            "is a DTensor, which cannot be stepped yet; keep it out of `fully_shard` by "
            "`ignored_params`, and out of other functions that distribute parameters."
        )
    x = p.detach()
    if x.is_meta or x.numel() == 0:
        return
    error = float(estimate_orthogonality_error(x).max()) / math.sqrt(p.shape[-1])
    if not error <= OFF_MANIFOLD:
        raise ValueError(
            f"{capitalized(described(p, group))} on {manifold} must satisfy xᴴx = I before its "
            f"first step and after a load, but ‖xᴴx - I‖ / √n is about {error:.1e}; call "
            "`proj_()` on it under `torch.no_grad()`, build it from `manifold.projx(x)`, or call "
            "`geoopt_projunn.nn.project_(module)`, to start from the nearest unitary matrix."
        )


def mend_loaded_state(state: Any, p: torch.Tensor) -> None:
    """Give the state of a parameter the form that its steps expect, after a load.

    torch leaves what is called "step" where a checkpoint had it, or makes it a float32 of it. Older
    versions of torch, and geoopt, count steps in Python's numbers.
    """
    if not isinstance(state, dict) or "step" not in state:
        return
    step = state["step"]
    if "skipped" in state:
        state["step"] = torch.as_tensor(step).to(p.device, torch.int64)
    elif manifold_of(p) is None and not isinstance(step, torch.Tensor):
        wide = torch.get_default_dtype() == torch.float64
        state["step"] = torch.tensor(float(step), dtype=torch.float64 if wide else torch.float32)
