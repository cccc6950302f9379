"""Pseudo-random test vectors as a function of a counter, without a generator.

The same counter gives the same bits on every device and every replica, a resumed run
continues exactly, and a CUDA graph can capture the computation.
"""

import torch

# Odd 64-bit constants of the splitmix64 generator (Steele, Lea & Flood, 2014), as signed.
_INCREMENT = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def uniform(counter: torch.Tensor, count: int) -> torch.Tensor:
    r"""Return numbers in :math:`(-1, 1)`, fixed by the counter.

    Parameters
    ----------
    counter : torch.Tensor
        (*), int64; equal counters give equal numbers
    count : int
        how many numbers for each counter

    Returns
    -------
    torch.Tensor
        (*, count), float64, multiples of :math:`2^{-52}` and never 0
    """
    index = torch.arange(1, count + 1, device=counter.device)
    bits = torch.add(index, counter.unsqueeze(-1), alpha=count).mul_(_INCREMENT)
    bits.bitwise_xor_(_shift(bits, 30)).mul_(_MIX_1)
    bits.bitwise_xor_(_shift(bits, 27)).mul_(_MIX_2)
    bits.bitwise_xor_(_shift(bits, 31))
    # Exact in every operation: (bits + 0.5) * 2**-51 - 1.
    return _shift(bits, 12).double().mul_(2.0**-51).add_(2.0**-52 - 1.0)


def bits_of_row(u: torch.Tensor) -> torch.Tensor:
    """Return a counter that the first row of each matrix determines, (*), int64.

    A sum of bits taken as integers: the same in any order, and so in any batch.
    """
    row = u[..., 0, :]
    real = torch.view_as_real(row).flatten(-2) if row.is_complex() else row
    integer = torch.int64 if real.dtype == torch.float64 else torch.int32
    return real.contiguous().view(integer).sum(-1, dtype=torch.int64)


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)
