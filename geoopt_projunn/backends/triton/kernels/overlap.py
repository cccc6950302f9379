"""Let the kernels of a step overlap their launches, on GPUs that can."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(OVERLAPS: tl.constexpr, ENDS_STEP: tl.constexpr = False):
    """Wait for the kernel before, and let the next one be scheduled, which then waits for this one.

    A kernel is complete after its own wait: so where all kernels of a step begin with this, before
    they touch any memory, each one waits for all before it. What follows the step starts when the
    step is complete, for not every kernel of others waits before it reads a parameter.
    """
    if OVERLAPS:
        gdc_wait()
        if not ENDS_STEP:
            gdc_launch_dependents()
