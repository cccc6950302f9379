"""Convolutions with small kernels that are orthogonal by construction, and stay so in training."""

from .convolutions.block_layer import BlockConv

__all__ = ["BlockOrthogonalConv1d", "BlockOrthogonalConv2d"]


class BlockOrthogonalConv2d(BlockConv):
    r"""A real convolution with a small kernel that is an orthogonal linear map, by construction.

    The padding is circular, and images may have any size from that of the kernel on. The layer is a
    product of orthogonal maps,

    .. math:: y = R\, S \prod_i (I - N_i N_i^T + z_{a_i} N_i N_i^T)\, E x + b .

    - E adds channels of zeros, up to c = max(in_channels, out_channels // stride\ :sup:`2`).
    - Each filter shifts half of all directions, the columns of :math:`N_i`, by one pixel along one
      axis, the axes in turn. :math:`N_i`, c × ⌊c / 2⌋, has orthonormal columns. There are
      kernel_size - stride filters along each axis.
    - S turns blocks of stride × stride pixels into channels
      (:func:`torch.nn.functional.pixel_unshuffle`).
    - R has orthonormal columns or rows.

    Their product is one kernel, with which torch convolves. All N (``projectors``) and R
    (``weight``) are parameters on :class:`~geoopt_projunn.LowRankStiefel`, R on
    :class:`~geoopt_projunn.LowRankUnitary` if it is square. Train them with
    :class:`~geoopt_projunn.ProjUNNRiemannianSGD` or ``ProjUNNRiemannianAdam``: the layer stays
    orthogonal at any learning rate, and nothing is orthogonalized in forward.

    For in_channels * stride\ :sup:`2` <= out_channels the layer preserves norms (all singular
    values are 1), otherwise its transpose does (they are 1 and 0).

    Parameters
    ----------
    in_channels, out_channels : int
        number of channels
    kernel_size : int or tuple of int
        at least the stride on every axis
    stride : int
        the same on every axis; it has to divide the size of the input
    bias : bool
        add a learned constant to each output channel; it starts at zero. torch.nn.Conv2d's
        `padding`, `dilation`, `groups` and `padding_mode` do not exist here.
    init : {"haar", "identity"}
        "haar": start at random. "identity": start at a layer that copies channels. The copy is
        exact if c and kernel_size - stride are even; otherwise some channels are shifted by a
        pixel or, with many filters and few channels, by more. If there are more outputs than
        inputs, the additional outputs start at zero. Steps do not change the sign of the
        determinant of a square R.
    k, retraction, sketch
        Of the manifolds, with their defaults; ``k=None`` for full rank. If k is larger than a
        parameter allows, that parameter gets the largest allowed k.
    device, dtype
        of the parameters; ``dtype`` is that of the input

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        R, (out_channels, c * stride\ :sup:`2`)
    projectors : geoopt.ManifoldParameter or None
        all N, (filters, c, ⌊c / 2⌋), in the order of the product; None without filters and for
        c = 1, where a filter could only shift
    bias : torch.nn.Parameter or None
        (out_channels,)
    kernel_size : tuple of int
        one for each axis
    channels : int
        the c above

    Raises
    ------
    TypeError
        for an argument of another type, and for an input of another dtype, except under autocast
    ValueError
        for an argument out of range, for an input that is smaller than the kernel or of a size
        that the stride does not divide

    Notes
    -----
    Computing a k × k kernel of c channels costs :math:`O(k^2 c^3)` flops, :math:`26 c^3` for 3 × 3;
    the convolution costs :math:`2 k^2 c^2` for every pixel of the batch. The kernel is computed in
    each forward pass, in full precision. In ``eval()`` and without gradients of the parameters it
    is kept until their values change. To notice that, they are compared with copies; on a
    GPU the host waits for this, which :meth:`to_conv` avoids. The convolution itself is
    torch's, so autocast and TF32 apply to it. Derivatives of any order, torch.func, torch.export
    and ``torch.compile(fullgraph=True)`` work.

    The kernels are those of block convolution orthogonal parametrization (BCOP), and the way of
    strides is that of adaptive orthogonal convolution (AOC); both orthogonalize in forward.

    References
    ----------
    Li et al., *Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks*,
    arXiv:1911.00937. Boissin et al., arXiv:2501.08110. Xiao et al., arXiv:1806.05393.

    Examples
    --------
    >>> import torch
    >>> layer = BlockOrthogonalConv2d(3, 16, kernel_size=3)
    >>> x = torch.randn(2, 3, 8, 10)
    >>> y = layer(x)
    >>> y.shape
    torch.Size([2, 16, 8, 10])
    >>> torch.allclose(y.norm(), x.norm())
    True
    >>> torch.allclose(layer.adjoint(y), x, atol=1e-5)
    True
    """

    _dims = 2


class BlockOrthogonalConv1d(BlockConv):
    """A convolution of sequences with a small kernel; see :class:`BlockOrthogonalConv2d`."""

    _dims = 1
