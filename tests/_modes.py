"""Watch what a function asks of torch: which operations, and how much memory."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Each of these waits for the GPU, or is O(n³) on the whole matrix.
FORBIDDEN = frozenset(
    {
        "_linalg_check_errors",
        "_linalg_eigh",
        "_linalg_svd",
        "linalg_eig",
        "linalg_matrix_exp",
        "nonzero",
        "_local_scalar_dense",
    }
)


class Recorder(TorchDispatchMode):
    """Record the operations that run, how many tensors they return, and the sizes of new ones.

    Of the new ones, ``most_alive`` is how many entries they had together at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.created: list[int] = []
        self.returned = 0
        self.most_alive = self._alive = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.operations.add(name)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:]):
            self.operations.add("nonzero")  # hidden inside, where it asks how many are true
        result = func(*args, **(kwargs or {}))
        known = {_storage(t) for t in tensors}
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.returned += 1
                if _storage(t) not in known:
                    self._see(t)
        return result

    def _see(self, new: torch.Tensor) -> None:
        self.created.append(new.numel())
        self._alive += new.numel()
        self.most_alive = max(self.most_alive, self._alive)
        weakref.finalize(new.untyped_storage(), self._let_go, new.numel())

    def _let_go(self, entries: int) -> None:
        self._alive -= entries

    @property
    def largest(self) -> int:
        return max(self.created, default=0)

    @property
    def forbidden(self) -> set[str]:
        return self.operations & FORBIDDEN


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
