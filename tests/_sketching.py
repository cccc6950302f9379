"""Sketches of matrices, and what they stand for."""

import pytest
import torch

from geoopt_projunn.linalg.hashing import uniform
from geoopt_projunn.sketches import SKETCHES
from tests._matrices import DTYPES, inner_reference, skewh, wide

dtypes = pytest.mark.parametrize("dtype", DTYPES)
sketches = pytest.mark.parametrize("name", SKETCHES)
SIZES = [(7, 1), (7, 3), (8, 2), (8, 4), (2, 1), (3, 1)]
sizes = pytest.mark.parametrize(("n", "k"), SIZES, ids=str)


def run(name, x, d, k, counter=0):
    """Sketch one matrix, or a batch at the same counter."""
    x, d = (t if t.dim() == 3 else t[None] for t in (x, d))
    return SKETCHES[name](x, d, k, torch.full(x.shape[:1], counter))


def generator(sketched):
    """What the sketch stands for: W skewh(K) Wᴴ."""
    return sketched.rows.mH @ skewh(sketched.core) @ sketched.rows


def approximation(sketched, x):
    """What an ambient sketch makes of the direction: W K Wᴴ x."""
    return sketched.rows.mH @ sketched.core @ sketched.rows @ x.to(sketched.core.dtype)


def omega(x, d):
    return skewh(d.to(wide(d.dtype)) @ x.to(wide(x.dtype)).mH)


def captured(sketched, x, d):
    """Re⟨g, sketch of g⟩: what a short step along the sketch gains."""
    return inner_reference(omega(x, d), generator(sketched))


def hash_rows(k, n, counter, dtype):
    return uniform(torch.tensor(counter), k * n).view(k, n).to(dtype)
