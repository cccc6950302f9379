"""Who takes the steps: torch's operations anywhere, or compiled kernels where they serve."""

from .choice import available, choose, use

__all__ = ["available", "choose", "use"]
