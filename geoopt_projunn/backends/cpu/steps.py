"""Whole steps as one operator of torch."""

from typing import Any

import torch
from torch.autograd.graph import increment_version

from ...linalg.modes import is_watched
from ...normalization import noise_floor
from ..batch import Pieces
from . import kernels
from .kernels import check_choice
from .operators import FLOPS_OF_SKETCH, operator

Tensors = list[torch.Tensor]


def _without_data(
    x: Tensors, grad: Tensors, state: Tensors, step: Tensors, skipped: Tensors, *_: object
) -> None:
    devices = {t.device for t in (*x, *grad, *state, *step, *skipped)}
    if len(devices) > 1:
        raise RuntimeError(
            f"All tensors of a step must be on one device, got {devices}; move the model to it "
            "before the optimizer is made."
        )


def _flops(x: list[torch.Size], *rest: object, **__: object) -> int:
    # Entry by entry operations are not counted, as torch does not.
    k, sketch, _retraction, _length, sweep, _normalize = rest[-6:]
    # The tangent sketch knows the products of k of the 2k rows that are turned.
    of_sketch = {**FLOPS_OF_SKETCH, "tangent": 14}[str(sketch)]
    return (of_sketch * k + 4 * (2 * k + sweep)) * len(x) * x[0].numel()  # type: ignore[operator]


def _take(lists: tuple[Pieces, ...], options: tuple[Any, ...], *dispatch: Any) -> bool | None:
    """Take a step: whether no matrix skipped it, or None if that is left to the dispatcher."""
    rule, numbers, k, sketch, retraction, length, sweep, normalize = options
    integers = (
        *(k, check_choice("sketch", sketch, kernels.SKETCHES)),
        check_choice("retraction", retraction, kernels.RETRACTIONS),
        check_choice("normalize", normalize, kernels.NORMALIZATIONS),
        *(sweep, check_choice("rule", rule, kernels.RULES), torch.get_num_threads()),
    )
    x, _, state, *_ = lists
    reals = length, noise_floor(x[0]), *numbers
    all_stepped = kernels.kernels.step(kernels.DTYPES, integers, reals, *lists, *dispatch)
    if all_stepped is not None:
        # Of counters there are no derivatives.
        increment_version([*x, *state])
    return all_stepped


@operator(
    "(Tensor(a!)[] x, Tensor[] grad, Tensor(b!)[] state, Tensor(c!)[] step, Tensor(d!)[] skipped,"
    " str rule, float[] numbers, int k, str sketch, str retraction, float length, int sweep,"
    " str? normalize) -> ()",
    _without_data,
    _flops,
)
def step_(
    x: Tensors, grad: Tensors, state: Tensors, step: Tensors, skipped: Tensors, *options: Any
) -> None:
    """Do what Reference.step_ does, for the rules, sketches and retractions of the kernels.

    ``state`` holds what the rule keeps: the pieces of its first buffer, then those of its second...
    """
    _take((x, grad, state, step, skipped), options)


def take(lists: tuple[Pieces, ...], options: tuple[Any, ...]) -> bool:
    """Do what :func:`step_` does, past torch's dispatcher where nothing needs it.

    Return whether it is known that no matrix skipped the step.
    """
    if not is_watched():
        all_stepped = _take(lists, options, torch.Tensor.__torch_dispatch__)
        if all_stepped is not None:
            return all_stepped
    step_(*lists, *options)
    return False
