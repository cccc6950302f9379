r"""Convolutions that are orthogonal or unitary by construction, and stay so in training."""

import math
from collections.abc import Sequence

import geoopt
import torch

from .convolutions.full_width import FullWidthConv
from .frequencies import analyse, analyse_complex, synthesise, synthesise_complex

__all__ = [
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConv3d",
    "UnitaryConv1d",
    "UnitaryConv2d",
    "UnitaryConv3d",
]


class _RealConv(FullWidthConv):
    _complex = False
    weight_real: geoopt.ManifoldParameter

    @staticmethod
    def _counts_of(grid: tuple[int, ...]) -> dict[str, int]:
        own = math.prod([1 if n % 2 else 2 for n in grid])
        return {"weight_real": own, "weight": (math.prod(grid) - own) // 2}

    def _coordinates(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return analyse(x, self.grid)

    def _signal(self, coordinates: Sequence[torch.Tensor]) -> torch.Tensor:
        own, pairs = coordinates
        return synthesise(own, pairs, self.grid)


class _ComplexConv(FullWidthConv):
    _complex = True

    @staticmethod
    def _counts_of(grid: tuple[int, ...]) -> dict[str, int]:
        return {"weight": math.prod(grid)}

    def _coordinates(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (analyse_complex(x),)

    def _signal(self, coordinates: Sequence[torch.Tensor]) -> torch.Tensor:
        return synthesise_complex(coordinates[0], self.grid)


class OrthogonalConv2d(_RealConv):
    r"""A real convolution that is an orthogonal linear map, by construction.

    The kernel is as wide as the image, the padding circular. The discrete Fourier transform then
    splits the convolution into one matrix for each frequency,

    .. math:: \hat y(f) = W(f)\, \hat x(f), \qquad W(-f) = \overline{W(f)},

    and it is orthogonal if and only if each :math:`W(f)` is unitary. The matrices are parameters on
    :class:`~geoopt_projunn.LowRankUnitary`. If a frequency equals its own negative, its matrix is
    real (in ``weight_real``). Of every other pair of frequencies only one matrix is stored, complex
    (in ``weight``). :class:`~geoopt_projunn.ProjUNNRiemannianSGD` and ``ProjUNNRiemannianAdam``
    step each of the two as one batch, and the layer stays orthogonal at any learning rate.

    The matrices are n × n, n = max(in_channels * stride\ :sup:`2`, out_channels): channels of zeros
    are added to the input, or the output is cut to its first channels. For out_channels = n the
    layer preserves norms, otherwise its singular values are 0 and 1. With a stride, blocks of
    pixels first become channels (:func:`torch.nn.functional.pixel_unshuffle`).

    Parameters
    ----------
    in_channels, out_channels : int
        number of channels
    size : int or tuple of int
        Spatial size of the input, the only one that the layer takes.
    stride : int
        a divisor of the size, on every axis
    bias : bool
        add a learned constant to each output channel; it starts at zero. torch.nn.Conv2d's
        `padding`, `dilation`, `groups` and `padding_mode` do not exist here.
    init : {"identity", "haar", "henaff", "cayley"}
        "identity": start at W(f) = I, the convolution that copies channels. The others: start at
        independent random matrices, a kernel of noise as wide as the image; see
        :mod:`geoopt_projunn.init`. Steps do not change the sign of the determinant of a real
        matrix: from the identity all stay at 1.
    k, retraction, sketch
        Of the manifold, :class:`~geoopt_projunn.LowRankUnitary`, with its defaults; ``k=None`` for
        full rank.
    device, dtype
        of the parameters; ``dtype`` is that of the input

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        (p, n, n), complex; p is about half the number of output pixels
    weight_real : geoopt.ManifoldParameter
        (s, n, n), real; s is 2 to the power of the number of even axes of the output
    bias : torch.nn.Parameter or None
        (out_channels,)
    grid : tuple of int
        spatial size of the output, ``size / stride``
    channels : int
        the n above

    Raises
    ------
    TypeError
        for an argument of another type, and for an input of another dtype; under autocast the
        input is converted
    ValueError
        for an argument out of range, and for an input of another shape

    Notes
    -----
    With P output pixels and batch size b, forward and backward cost
    :math:`O(bPn (\log P + n))`, a step :math:`O(kPn^2)`. The parameters are Pn²/2 complex
    numbers. Beside the output, forward allocates three times the input's memory, and keeps one
    times the input's memory for backward. Both passes run in the precision of the parameters,
    whatever autocast and the settings of float32 products say. Derivatives of any order, in
    reverse and forward mode, torch.func, torch.export and ``torch.compile(fullgraph=True)`` work.
    Under torch.func the Fourier transforms cost up to twice as much. Under torch.func, for second
    derivatives and in compiled code, the products of a backward pass run in the precision that the
    user has set.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 4. Trockman and Kolter, arXiv:2104.07167.

    Examples
    --------
    >>> layer = OrthogonalConv2d(3, 16, size=8)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> y = layer(x)
    >>> y.shape
    torch.Size([2, 16, 8, 8])
    >>> torch.allclose(y.norm(), x.norm())
    True
    >>> torch.allclose(layer.adjoint(y), x, atol=1e-6)
    True
    """

    _dims = 2


class OrthogonalConv1d(_RealConv):
    """A real convolution of sequences that is orthogonal; see :class:`OrthogonalConv2d`."""

    _dims = 1


class OrthogonalConv3d(_RealConv):
    """A real convolution of volumes that is orthogonal; see :class:`OrthogonalConv2d`."""

    _dims = 3


class UnitaryConv2d(_ComplexConv):
    r"""A complex convolution that is a unitary linear map, by construction.

    Like :class:`OrthogonalConv2d`, with one complex matrix for each frequency: ``weight`` has shape
    (P, n, n), P the number of output pixels in the order of :func:`torch.fft.fftn`, and there is
    no ``weight_real``. It takes twice the memory of the real layer, and more time.
    """

    _dims = 2


class UnitaryConv1d(_ComplexConv):
    """A complex convolution of sequences that is unitary; see :class:`UnitaryConv2d`."""

    _dims = 1


class UnitaryConv3d(_ComplexConv):
    """A complex convolution of volumes that is unitary; see :class:`UnitaryConv2d`."""

    _dims = 3
