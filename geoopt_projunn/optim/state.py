"""The state of a parameter of low-rank steps: how it begins, and what a load makes of it."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch

from ..backends import choose
from ..backends.batch_sizes import parts_of_list
from ..backends.distributed import is_spread
from ..backends.spec import Buffers, Rule
from ..low_rank_manifold import LowRankManifold
from .kinds import low_rank_of, manifold_of
from .messages import capitalized, described
from .nonfinite import COUNTER
from .spread import first_buffers, full_like

OFF_MANIFOLD = 1e-4
"""The largest ‖xᴴx − I‖ / ‖I‖ to step from: above the error of float32 data and of any init."""
# Sums of gradients, which change their sign with them.
_LINEAR = {"momentum_buffer", "exp_avg"}


def first_state(
    p: torch.Tensor,
    manifold: LowRankManifold,
    rule: Rule,
    group: Mapping[str, Any],
    found: Mapping[str, Any],
) -> Buffers:
    """Return the state of a parameter that this optimizer has not stepped yet.

    What another optimizer left there, such as torch's and geoopt's Adam, is taken over together
    with the number of its steps if all of it has the names and the shapes of ours; AMSGrad's
    largest moments may begin later. Of a part the steps would be too long: a second moment that
    begins at zero needs the bias correction of a first step. Blocks are counted one by one, and
    have the shape of a batch.
    """
    x = manifold.stacked(p.detach())
    batch = x.shape[:-2]
    fresh = first_buffers(x, rule, group)
    taken_over = {
        name: value
        for name, value in found.items()
        if name in fresh and (value.shape, value.dtype) == (fresh[name].shape, fresh[name].dtype)
    }
    if any(name not in taken_over for name in fresh if not name.startswith("max_")):
        taken_over = {}
    if group["maximize"]:
        # torch's hold gradients with the other sign; geoopt's Adam knows no such option.
        for name in _LINEAR & taken_over.keys():
            taken_over[name] = -taken_over[name]
    # torch's SGD counts no steps; this one damps the gradient at the first.
    steps = int(found.get("step", 1)) if taken_over else 0
    return {
        "step": full_like(x, batch, steps, torch.int64),
        # Of a floating dtype, which is what torch makes of it when a checkpoint is loaded.
        "skipped": full_like(x, batch, 0, p.dtype.to_real()),
        **fresh,
        **taken_over,
    }


def probe(p: torch.Tensor, manifold: LowRankManifold, group: Mapping[str, Any]) -> None:
    """Raise ValueError unless a parameter is on its manifold: :math:`O(np)`, the host waits."""
    if p.is_meta or p.numel() == 0:
        return
    error = float(relative_error(manifold.points(p)).max())
    if not error <= OFF_MANIFOLD:
        gram = manifold.gram(p)
        of_each = "" if manifold.blocks == 1 else f" in each of its {manifold.blocks} blocks"
        raise ValueError(
            f"{capitalized(described(p, group))} on {manifold} must satisfy {gram} = I{of_each} "
            f"before its first step and after a load, but ‖{gram} - I‖ / ‖I‖ is about {error:.1e}; "
            "call `proj_()` on it under `torch.no_grad()`, build it from `manifold.projx(x)`, or "
            "call `geoopt_projunn.nn.project_(module)`, to start from the nearest point."
        )


def relative_error(x: torch.Tensor) -> torch.Tensor:
    """Estimate ‖xᴴx - I‖ / ‖I‖ of each of some tall matrices, :math:`O(np)`."""
    x = x.detach()
    return choose(x).estimate_orthogonality_error(x) / math.sqrt(x.shape[-1])


def worst_errors(params: Iterable[torch.Tensor]) -> dict[torch.Tensor, torch.Tensor]:
    """Return the largest :func:`relative_error` of each parameter; small ones alike are stacked."""
    alike: dict[Hashable, dict[torch.Tensor, torch.Tensor]] = defaultdict(dict)
    for p in params:
        x = low_rank_of(p).points(p)
        alike[p if is_spread(p) else (x.shape, x.dtype, x.device)][p] = x
    errors: dict[torch.Tensor, torch.Tensor] = {}
    for points in alike.values():
        params, tensors = list(points), list(points.values())
        for some in parts_of_list(tensors):
            if len(part := tensors[some]) == 1:
                worst = [relative_error(part[0]).max()]
            else:
                worst = [*relative_error(torch.stack(part)).view(len(part), -1).amax(-1)]
            errors.update(zip(params[some], worst, strict=True))
    return errors


def mend_loaded_state(state: Any, p: torch.Tensor, group: Mapping[str, Any], rule: Rule) -> None:
    """Give a state that was loaded the dtypes and devices that steps expect.

    torch leaves "step" on the device of the checkpoint, or makes it float32, and all else of the
    dtype of the parameter. geoopt and older versions of torch count steps in Python's numbers.

    Raises
    ------
    TypeError
        If a state of ours lacks what all have, or holds something else than dense tensors.
    """
    if not isinstance(state, dict):
        return
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            state[name] = _own(value)
    step = state.get("step")
    if "skipped" in state:
        if isinstance(step, int | float):
            # as_tensor would move a tensor to torch's default device.
            state["step"] = torch.tensor(step, device="cpu")
        for name in ("skipped", *(rule.known_buffers & state.keys())):
            _dense(name, state, p, group)
        # Copies of what is counted, for torch loads the tensors of the state dict as they are, and
        # these may be those of a training that goes on.
        state["skipped"] = state["skipped"].clone()
        state["step"] = _dense("step", state, p, group).to(p.device, torch.int64, copy=True)
    elif isinstance(step, int | float) and manifold_of(p) is None:
        wide = torch.get_default_dtype() == torch.float64
        on_host = not (group.get("fused", False) or group.get("capturable", False))
        state["step"] = torch.tensor(
            float(step),
            dtype=torch.float64 if wide and on_host else torch.float32,
            device="cpu" if on_host else p.device,
        )
    if isinstance(state.get(COUNTER), torch.Tensor):
        state[COUNTER] = state[COUNTER].to(p.device, torch.float32, copy=True)


def _dense(
    name: str, state: Mapping[str, Any], p: torch.Tensor, group: Mapping[str, Any]
) -> torch.Tensor:
    value = state.get(name)
    got = type(value).__name__
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided:
            return value
        got = f"one of layout {value.layout}"
    raise TypeError(
        f"`{name}` in the state of {described(p, group)} must be a dense tensor, got {got}; "
        "load a state that an optimizer of this package has made, or make the optimizer anew."
    )


def _own(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor that steps can write to: of an inference or an expanded tensor a copy."""
    if not t.is_inference() and (t.layout != torch.strided or 0 not in t.stride()):
        return t
    with torch.inference_mode(False):
        return t.detach().clone(memory_format=torch.contiguous_format)
