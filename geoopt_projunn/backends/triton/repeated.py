"""Launch one kernel at each step of a loop as at an earlier one, with other addresses.

The launches of a loop are alike in all that Triton looks at again each time, except that steps may
differ in their sizes and in the alignment of their tensors.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .launches import Launch, Launches, Place, can_join, joined
from .programs import ALIGNMENT, has_hooks, in_order, specialized, stream_of

Share = Callable[..., tuple[int, tuple[int, ...]]]


class Repeated:
    """A kernel in one loop, called with the tensors of a step.

    All run on one device, which need not be the current one, and on the stream that is current
    there throughout. Of a complex tensor the kernel sees its parts side by side.

    Parameters
    ----------
    kernel
        takes the tensors of a step, then others, then integers, then constants
    share : callable
        Checks the tensors of a step and returns how many programs there are, and the integers.
        It may ask for shapes and strides alone.
    others : sequence of torch.Tensor
        the same at all steps
    **constants
        by name, with the options of the compiler; the same at all steps
    """

    def __init__(
        self, kernel: Any, share: Share, others: Sequence[Tensor], **constants: Any
    ) -> None:
        self._kernel, self._share, self._constants = kernel, share, constants
        # Addresses are of memory that has to stay.
        self._others = tuple(others)
        self._device = self._others[0].device
        # By all that steps differ in except addresses, and by what Triton compiles kernels for.
        self._launches: dict[Hashable, Launches] = {}
        self._compiled: dict[Hashable, Any] = {}
        # Both are found out when there is something to launch.
        self._is_elsewhere = False
        self._stream = 0

    def __call__(self, *tensors: Tensor) -> None:
        """Launch the kernel on the tensors of a step."""
        addresses: list[int] = []
        like: list[Hashable] = []
        for t in tensors:
            address = t.data_ptr()
            addresses.append(address)
            like += (address % ALIGNMENT, t.shape, t.stride(), t.dtype)
        key = tuple(like)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._prepared(tensors)
            if launch is None:
                return
            self._launches[key] = launch
        values = (*addresses, self._stream)
        if self._is_elsewhere:
            with torch.cuda.device(self._device):
                launch.start(values, self._device)
        else:
            launch.start(values, self._device)

    def _prepared(self, tensors: tuple[Tensor, ...]) -> Launches | None:
        """Return how to launch on tensors like these; None if Triton had to do it."""
        programs, integers = self._share(*tensors)
        everything = (*tensors, *self._others)
        kind = (
            *[(t.dtype, specialized(t.data_ptr())) for t in everything],
            *map(specialized, integers),
        )
        compiled = self._compiled.get(kind)
        if compiled is None:
            entries = [torch.view_as_real(t) if t.is_complex() else t for t in everything]
            with torch.cuda.device_of(tensors[0]):
                compiled = self._kernel[(programs,)](*entries, *integers, **self._constants)
            if can_join(compiled) and not has_hooks():
                self._compiled[kind] = compiled
            return None
        self._stream = stream_of(self._device)
        self._is_elsewhere = _is_elsewhere(self._device)
        places = [Place(number, 0) for number in range(len(tensors))]
        others = [t.data_ptr() for t in self._others]
        given = in_order(self._kernel, (*places, *others, *integers), self._constants)
        return joined([Launch(compiled, (programs,), given)])


def _is_elsewhere(device: torch.device) -> bool:
    return device.type == "cuda" and device.index != torch.cuda.current_device()
