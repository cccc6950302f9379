"""The bases of a step are orthonormal or zero to rounding."""

import pytest
import torch

from geoopt_projunn.backends.spec import StepSpec
from geoopt_projunn.backends.triton.direction import Direction
from geoopt_projunn.backends.triton.kernels import directions
from geoopt_projunn.backends.triton.launching import padded
from geoopt_projunn.backends.triton.step import Step
from tests._asserts import assert_within
from tests._matrices import unitary

pytestmark = pytest.mark.usefixtures("spoilt_memory")


def orthonormalized(rows):
    """Return the basis that a step makes of rows (b, k, n), mended."""
    b, k, n = rows.shape
    x = torch.zeros(b, n, n, dtype=rows.dtype)
    d = Direction((x,) * 4, directions.GRADIENT, False, (0.0, 0.0, 0.0))
    count, spec = torch.zeros(b, dtype=torch.int64), StepSpec(k, "tangent", "exponential", 0)
    step = Step(x, d, count, count, 0.1, None, spec, is_limited=False)
    step.flags["tickets"].zero_()
    plus, minus = step.memory["back"].zero_(), step.memory["last"].zero_()
    count = k * (1 + rows.is_complex())
    real = torch.view_as_real(rows).movedim(-1, -2).flatten(1, 2) if rows.is_complex() else rows
    size = b * step.sizes.tiles.blocks * count * n
    plus[:size].view(b, -1, count, n)[:, 0] = real
    step._basis(plus, minus)
    side = padded(count)
    again = step.memory64["again"][: b * side**2].view(b, side, side)[:, :count, :count]
    q = again @ step.memory64["q"][: b * count * n].view(b, count, n)
    return torch.complex(q[:, ::2], q[:, 1::2]) if rows.is_complex() else q


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_row_that_depends_on_nearly_dependent_ones_is_orthogonal_or_nothing(dtype):
    """What is left of it is rounding of these, many times its own."""
    u, v, w, *_ = unitary(16, 66, 66, dtype=dtype).unbind(1)
    share = torch.tensor([0.0, 1e-14, 2e-6, 1e-4]).repeat(4)[:, None]
    rows = torch.stack((u, u + share * v, u + v, w + u + v), dim=1)
    basis = orthonormalized(rows)
    gram = basis @ basis.mH
    kept = gram.diagonal(dim1=-2, dim2=-1).real > 0.5
    assert_within(gram, torch.diag_embed(kept.to(dtype)), 1e-14)
    assert (kept.sum(-1) == 3).all()
