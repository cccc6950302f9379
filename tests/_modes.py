"""Watch what a function asks of torch: which operations, and how much memory."""

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
    """Record the operations that run, how many tensors they return, and the sizes of new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.created: list[int] = []
        self.returned = 0

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
                    self.created.append(t.numel())
        return result

    @property
    def largest(self) -> int:
        return max(self.created, default=0)

    @property
    def forbidden(self) -> set[str]:
        return self.operations & FORBIDDEN


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
