"""How far steps turn."""

import pytest
import torch

from ._helpers import DTYPES, OPTIMIZERS, SKETCHES

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_sketch = pytest.mark.parametrize("sketch", SKETCHES)
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
each_name = pytest.mark.parametrize("normalize", ["angle", "spectral"])


def angles(start, p):
    """Angles of the eigenvalues of a step, the largest first."""
    wide = torch.complex128
    step = p.detach().to(wide) @ start.detach().to(wide).mH
    return torch.linalg.eigvals(step).angle().abs().sort(dim=-1, descending=True).values
