"""Let the kernels of a step overlap their launches, on GPUs that can."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(OVERLAPS: tl.constexpr, ENDS_STEP: tl.constexpr = False):
    """Wait until the kernel before is complete, and let the GPU schedule the next one meanwhile.

    All kernels of a step begin with this, before they touch any memory: the one before has itself
    waited for the one before it, and so on. Kernels of others may do without: the first kernel of a
    step is not scheduled before they are complete, and the last one lets none of them be scheduled
    before it is complete itself.
    """
    if OVERLAPS:
        gdc_wait()
        if not ENDS_STEP:
            gdc_launch_dependents()
