r"""What optimizers remember, in one pass over it, where the extension serves.

Torch's own operations make a temporary of the gradient's size for each of a dozen. What is
remembered changes only after the step that it made was found to be finite: until then nothing is
stored but the direction.
"""

import torch

from . import extension
from .extension import check, is_plain

_library = torch.library.Library("geoopt_projunn", "FRAGMENT")
_library.define(
    "adam_direction(Tensor grad, Tensor first, Tensor second, Tensor? most, Tensor taken, "
    "float beta1, float beta2, float eps) -> (Tensor, Tensor)"
)
_library.define(
    "adam_moments_(Tensor grad, Tensor(a!) first, Tensor(b!) second, Tensor(c!)? most, "
    "Tensor taken, float beta1, float beta2, float eps, Tensor active) -> ()"
)
_library.define(
    "momentum_direction(Tensor grad, Tensor buffer, Tensor taken, float momentum, float dampening,"
    " bool nesterov) -> (Tensor, Tensor)"
)
_library.define(
    "momentum_buffer_(Tensor grad, Tensor(a!) buffer, Tensor taken, float momentum,"
    " float dampening, bool nesterov, Tensor active) -> ()"
)

adam_direction = torch.ops.geoopt_projunn.adam_direction.default
"""Adam's direction, (b, n, n), and where the moments that made it are finite, (b,), bool.

The moments before the step are ``first``, (b, n, n), ``second``, (b, n, n) or (b, 1, 1), and
``most``, the largest second one so far, or None; ``taken``, (b,), int64, counts the steps before.
"""
adam_moments_ = torch.ops.geoopt_projunn.adam_moments_.default
"""The moments of the next step, in place, where ``active``, (b,), bool."""
momentum_direction = torch.ops.geoopt_projunn.momentum_direction.default
"""momentum * buffer + (1 - dampening) * grad, undamped where ``taken`` is 0, and where finite.

With ``nesterov`` the gradient and momentum times that.
"""
momentum_buffer_ = torch.ops.geoopt_projunn.momentum_buffer_.default
"""The momentum of the next step, in place, where ``active``, (b,), bool."""


def serve(grad: torch.Tensor, *buffers: torch.Tensor) -> bool:
    """Return whether the operators take a gradient and buffers like these."""
    return all(
        extension.serves(tensor) and is_plain(tensor) and tensor.real.dtype == grad.real.dtype
        for tensor in (grad, *buffers)
    )


def _sizes(grad: torch.Tensor) -> tuple[int, int, int]:
    b, rows, columns = grad.shape
    return extension.KINDS[grad.dtype], b, rows * columns


def _adam(
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    most: torch.Tensor | None,
    taken: torch.Tensor,
    hyperparameters: torch.Tensor,
) -> tuple[int, ...]:
    """Check, and return what the kernels want to know of these."""
    shape, real = tuple(grad.shape), grad.real.dtype
    is_scalar = second.shape[1:] == (1, 1)
    small = (shape[0], 1, 1) if is_scalar else shape
    check(grad, "grad", shape, grad.dtype)
    check(first, "first", shape, grad.dtype)
    check(second, "second", small, real)
    if most is not None:
        check(most, "most", small, real)
    check(taken, "taken", shape[:1], torch.int64)
    tensors = (grad, first, second, most, taken, hyperparameters)
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    return *_sizes(grad), is_scalar, torch.get_num_threads(), *addresses


def _adam_direction(
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    most: torch.Tensor | None,
    taken: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    taken = taken.contiguous()
    hyperparameters = torch.tensor((beta1, beta2, eps), dtype=torch.float64)
    numbers = _adam(grad, first, second, most, taken, hyperparameters)
    direction, finite = _like(grad)
    extension.kernels.adam_direction(*numbers, direction.data_ptr(), finite.data_ptr())
    return direction, finite


def _adam_moments_(
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    most: torch.Tensor | None,
    taken: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    active: torch.Tensor,
) -> None:
    taken, active = taken.contiguous(), active.contiguous()
    hyperparameters = torch.tensor((beta1, beta2, eps), dtype=torch.float64)
    numbers = _adam(grad, first, second, most, taken, hyperparameters)
    check(active, "active", tuple(taken.shape), torch.bool)
    extension.kernels.adam_moments(*numbers, active.data_ptr())
    # What autograd has saved must not change unnoticed.
    changed = (first, second) if most is None else (first, second, most)
    torch.autograd.graph.increment_version(changed)


def _momentum(
    grad: torch.Tensor,
    buffer: torch.Tensor,
    taken: torch.Tensor,
    nesterov: bool,
    hyperparameters: torch.Tensor,
) -> tuple[int, ...]:
    """Check, and return what the kernels want to know of these."""
    check(grad, "grad", tuple(grad.shape), grad.dtype)
    check(buffer, "buffer", tuple(grad.shape), grad.dtype)
    check(taken, "taken", tuple(grad.shape[:1]), torch.int64)
    addresses = (tensor.data_ptr() for tensor in (grad, buffer, taken, hyperparameters))
    return *_sizes(grad), nesterov, torch.get_num_threads(), *addresses


def _momentum_direction(
    grad: torch.Tensor,
    buffer: torch.Tensor,
    taken: torch.Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    taken = taken.contiguous()
    hyperparameters = torch.tensor((momentum, dampening), dtype=torch.float64)
    numbers = _momentum(grad, buffer, taken, nesterov, hyperparameters)
    direction, finite = _like(grad)
    extension.kernels.momentum_direction(*numbers, direction.data_ptr(), finite.data_ptr())
    return direction, finite


def _momentum_buffer_(
    grad: torch.Tensor,
    buffer: torch.Tensor,
    taken: torch.Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    active: torch.Tensor,
) -> None:
    taken, active = taken.contiguous(), active.contiguous()
    hyperparameters = torch.tensor((momentum, dampening), dtype=torch.float64)
    numbers = _momentum(grad, buffer, taken, nesterov, hyperparameters)
    check(active, "active", tuple(taken.shape), torch.bool)
    extension.kernels.momentum_buffer(*numbers, active.data_ptr())
    torch.autograd.graph.increment_version(buffer)


def _like(grad: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(grad), grad.new_empty(len(grad), dtype=torch.bool)


_library.impl("adam_direction", _adam_direction, "CPU")
_library.impl("adam_moments_", _adam_moments_, "CPU")
_library.impl("momentum_direction", _momentum_direction, "CPU")
_library.impl("momentum_buffer_", _momentum_buffer_, "CPU")

torch.library.register_fake(adam_direction, _like)
torch.library.register_fake(adam_moments_, lambda *_: None)
torch.library.register_fake(momentum_direction, _like)
torch.library.register_fake(momentum_buffer_, lambda *_: None)
