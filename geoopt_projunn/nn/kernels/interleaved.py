"""Complex numbers as kernels see them: two neighbours in memory."""

import triton
import triton.language as tl


@triton.jit
def load(z, at, mask):
    """Return the real and the imaginary parts of the entries ``at``, of any shape."""
    parts = tl.expand_dims(2 * at, -1) + tl.arange(0, 2)
    return tl.split(tl.load(z + parts, tl.expand_dims(mask, -1), 0.0))


@triton.jit
def store(z, at, mask, re, im):
    """Set the entries ``at``."""
    parts = tl.expand_dims(2 * at, -1) + tl.arange(0, 2)
    tl.store(z + parts, tl.join(re, im), tl.expand_dims(mask, -1))
