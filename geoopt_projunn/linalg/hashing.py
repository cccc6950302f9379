"""Pseudo-random test vectors as a function of a counter, without a generator.

The same counter gives the same bits on every device and every replica, a resumed run
continues exactly, and a CUDA graph can capture the computation.
"""

import torch

from .rows import as_real

# Of a 32-bit finalizer of two rounds that the hash-prospector project found by a search for the
# least bias. In int64 no product overflows, which compiled code need not wrap around.
MIX_1 = 0x21F0AAAD
MIX_2 = 0x735A2D97
MASK = 2**32 - 1


def uniform(counter: torch.Tensor, count: int) -> torch.Tensor:
    r"""Return ``count`` numbers in :math:`(-1, 1)` for each counter, fixed by it.

    Of counters (*), int64, they are (*, count), float64, odd multiples of :math:`2^{-32}`.
    Consecutive counters give independent numbers until :math:`2^{32}` have been drawn.
    """
    start = counter.bitwise_and(MASK).mul_(count).unsqueeze(-1)
    bits = torch.arange(1, count + 1, device=counter.device).add(start).bitwise_and_(MASK)
    bits = _mix_(bits)
    # Exact in every operation: (bits + 0.5) * 2**-31 - 1.
    return bits.double().mul_(2.0**-31).add_(2.0**-32 - 1.0)


def in_turn(counter: torch.Tensor, count: int, number: int) -> torch.Tensor:
    """Return which ``count`` of a number of rows have their turn, (*, count), for counters (*).

    Consecutive counters give consecutive rows, around the end and on.
    """
    index = torch.arange(count, device=counter.device)
    return torch.add(index, counter.unsqueeze(-1), alpha=count).remainder_(number)


def bits_of(u: torch.Tensor) -> torch.Tensor:
    """Return a counter that the entries of each matrix determine up to their signs, (*), int64.

    A sum of bits taken as integers, the same in any order, and so in any batch; mixed, for those
    of float64 differ in the upper half at times. Of all entries, because some may be constant.
    """
    real = as_real(u).resolve_neg()
    integer = torch.int64 if real.dtype == torch.float64 else torch.int32
    total = real.view(integer).sum((-2, -1), dtype=torch.int64)
    # Without the bits of signs, each of which counts as one more than this number.
    total.bitwise_and_(torch.iinfo(integer).max)
    return _mix_((total ^ (total >> 32)).bitwise_and_(MASK))


def _mix_(bits: torch.Tensor) -> torch.Tensor:
    """Permute the numbers below 2**32, in place."""
    bits.bitwise_xor_(bits >> 16).mul_(MIX_1).bitwise_and_(MASK)
    bits.bitwise_xor_(bits >> 15).mul_(MIX_2).bitwise_and_(MASK)
    return bits.bitwise_xor_(bits >> 15)
