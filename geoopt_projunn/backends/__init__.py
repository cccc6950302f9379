"""Who takes the steps: torch's operations anywhere, or compiled kernels where they serve."""

from .choice import available, choose, products_for, use

__all__ = ["available", "choose", "products_for", "use"]
