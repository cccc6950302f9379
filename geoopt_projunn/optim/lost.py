"""Plain parameters that look as if something had dropped their manifold."""

from collections.abc import Iterable, Set

import geoopt
import torch

from ..backends.distributed import is_dtensor
from ..geometry.checks import upright
from ..linalg.modes import is_capturing
from ..linalg.precision import WIDE
from ..warning import warn
from .kinds import Groups, Parts, manifold_of
from .messages import capitalized, described
from .state import OFF_MANIFOLD, relative_error


class LostManifolds:
    """Warn, once each, of plain parameters that are orthogonal to rounding as they begin to move.

    Those on geoopt.Euclidean count as plain. With orthonormal columns or rows, or squares of that
    kind one above the other: steps will not keep them so. One or two probes of :math:`O(np)` for
    each at its first step, for which the host waits. Diagonal matrices are left out: the identity
    is a usual start of plain weights.
    """

    def __init__(self) -> None:
        # Not by weak references, with which torch.utils.swap_tensors refuses a tensor.
        self._seen: set[torch.Tensor] = set()

    def look(self, groups: Groups, parts: Iterable[Parts]) -> None:
        """Look at plain parameters that are about to take their first step.

        Those that take it while a CUDA graph is captured have their turn later: a look waits.

        Raises
        ------
        TypeError
            If torch.distributed.fsdp.FullyShardedDataParallel has flattened a matrix on a manifold
            into a vector.
        """
        if is_capturing():
            return
        begun = []
        for group, part in zip(groups, parts, strict=True):
            for p in (*part.plain, *filter(_is_euclidean, part.riemannian)):
                if p.grad is None or p in self._seen:
                    continue
                begun.append(p)
                _assert_not_flattened(p)
                if _is_unitary(p):
                    warn(
                        f"{capitalized(described(p, group))} is orthogonal to rounding, but a "
                        "plain parameter: steps will not keep it so. If it was on LowRankUnitary "
                        "or LowRankStiefel, a conversion, a load or a wrapper has dropped its "
                        "manifold: call `geoopt_projunn.nn.orthogonalize_` for it, or make it a "
                        "`geoopt.ManifoldParameter`, before the optimizer is made. If it is a "
                        "plain weight with an orthogonal start, ignore this."
                    )
        # Not before: an error that a warning has become comes again.
        self._seen.update(begun)

    def forget_all_but(self, params: Set[torch.Tensor]) -> None:
        """Forget parameters that are not among these."""
        self._seen &= params


def _assert_not_flattened(p: torch.Tensor) -> None:
    for info in getattr(p, "_param_infos", ()):
        # Our modules, and those treated by orthogonalize_, keep a record in place of a dict.
        if hasattr(info.module._parameters, "manifolds"):
            raise TypeError(
                f"The parameters of {type(info.module).__name__} `{info.module_name}` must stay "
                "on their manifolds, but FullyShardedDataParallel has made a vector of them; name "
                "this module in its `ignored_modules`."
            )


def _is_euclidean(p: torch.Tensor) -> bool:
    """Return whether all values are points: this is geoopt's default, and so no choice."""
    return isinstance(manifold_of(p), geoopt.Euclidean)


def _is_unitary(p: torch.Tensor) -> bool:
    has_matrices = p.dim() >= 2 and min(p.shape[-2:]) >= 2 and p.numel() > 0
    if not (has_matrices and p.requires_grad and p.dtype in WIDE and p.layout == torch.strided):
        return False
    if p.is_meta or is_dtensor(p):
        return False
    x = p.detach()
    n, columns = x.shape[-2:]
    candidates = [upright(x)]
    if n > columns and n % columns == 0:
        candidates.append(x.unflatten(-2, (-1, columns)))
    return any(_is_orthogonal(one) for one in candidates)


def _is_orthogonal(x: torch.Tensor) -> bool:
    return bool(relative_error(x).max() <= OFF_MANIFOLD) and not _is_diagonal(x)


def _is_diagonal(x: torch.Tensor) -> bool:
    eye = torch.eye(*x.shape[-2:], dtype=torch.bool, device=x.device)
    return not bool(x.masked_fill(eye, 0).any())
