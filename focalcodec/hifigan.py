"""HiFi-GAN: the decoder of the ablation, feats or qfeats (B, N, H) to a waveform (B, N * hop).

Transposed convolutions raise the rate step by step; after each, residual blocks of several kernel
sizes and dilations are averaged [1]_. The default is V1 with the input's channels and the frame's
length of this codec, the arithmetic that of ``speechbrain.lobes.models.HifiGAN.HifiganGenerator``,
on whose weights it gives the same but at the ends: SpeechBrain mirrors a signal there, which very
short ones do not allow; here, as in the software of [1]_, zeros follow.

References
----------
.. [1] Kong et al., 2020, "HiFi-GAN", arXiv:2010.05646, section 2.2 and appendix A.1.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from focalcodec.masking import check_frames

_SLOPE = 0.1  # of the leaky ReLUs but the last


class HiFiGAN(nn.Module):
    """HiFi-GAN's generator; the defaults are V1 at 320 samples a frame.

    Parameters
    ----------
    input_dim : channels of feats.
    dim : channels before the first step; each step halves them.
    upsample_factors : of the steps; their product is the hop length.
    upsample_kernel_sizes : samples after each step, its factor plus an even number.
    resblock_kernel_sizes : of the residual blocks that are averaged, odd.
    resblock_dilations : of the first convolution of each pair in a residual block.

    Attributes
    ----------
    hop_length : samples per frame.

    Raises
    ------
    ValueError : if a size does not fit.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        *,
        dim: int = 512,
        upsample_factors: Sequence[int] = (10, 8, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (20, 16, 4, 4),
        resblock_kernel_sizes: Sequence[int] = (3, 7, 11),
        resblock_dilations: Sequence[int] = (1, 3, 5),
    ) -> None:
        super().__init__()
        _check_steps(dim, upsample_factors, upsample_kernel_sizes)
        _check_resblocks(resblock_kernel_sizes, resblock_dilations)
        self.input_dim = input_dim
        self.dim = dim
        self.upsample_factors = tuple(upsample_factors)
        self.upsample_kernel_sizes = tuple(upsample_kernel_sizes)
        self.resblock_kernel_sizes = tuple(resblock_kernel_sizes)
        self.resblock_dilations = tuple(resblock_dilations)
        self.hop_length = math.prod(upsample_factors)
        self.conv_pre = _conv(input_dim, dim, kernel_size=7)
        self.steps = nn.ModuleList(
            UpsampleStep(
                dim // 2**i,
                factor=factor,
                kernel_size=kernel_size,
                resblock_kernel_sizes=resblock_kernel_sizes,
                resblock_dilations=resblock_dilations,
            )
            for i, (factor, kernel_size) in enumerate(
                zip(upsample_factors, upsample_kernel_sizes, strict=True)
            )
        )
        self.conv_post = _conv(dim // 2 ** len(upsample_factors), 1, kernel_size=7)

    def forward(self, feats: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Decode.

        Parameters
        ----------
        feats : (B, N, input_dim) feats or qfeats.
        mask : (B, N) bool, True for real frames; None for all.

        Returns
        -------
        sig : (B, N * hop_length) float32 in [-1, 1]. With ``mask``, an item's samples are those
        that it has alone, and samples past its last real frame are 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(feats, dim=self.input_dim, mask=mask, name="feats")
        padding = None if mask is None else ~mask[:, None]
        x = self.conv_pre(_zeroed(feats.transpose(1, 2), padding))
        for step in self.steps:
            x = step(x, padding=padding)
            if padding is not None:
                padding = padding.repeat_interleave(step.factor, dim=2)
        x = _zeroed(F.leaky_relu(x), padding)  # with PyTorch's slope
        # In float32 under autocast too: half precision would be heard as noise.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_post(x.to(self.conv_post.bias.dtype))  # (B, 1, T)
            x = x.to(torch.promote_types(x.dtype, torch.float32)).tanh()
        return _zeroed(x, padding)[:, 0]


class UpsampleStep(nn.Module):
    """Transposed convolution that halves the channels, then the mean of residual blocks.

    Parameters
    ----------
    dim : channels of the input, even.
    factor : output samples of one input sample.
    kernel_size : of the transposed convolution, ``factor`` plus an even number.
    resblock_kernel_sizes, resblock_dilations : as in `HiFiGAN`.
    """

    def __init__(
        self,
        dim: int,
        *,
        factor: int,
        kernel_size: int,
        resblock_kernel_sizes: Sequence[int],
        resblock_dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.factor = factor
        self.upsample = weight_norm(
            nn.ConvTranspose1d(
                dim, dim // 2, kernel_size, stride=factor, padding=(kernel_size - factor) // 2
            )
        )
        self.resblocks = nn.ModuleList(
            ResBlock(dim // 2, kernel_size=size, dilations=resblock_dilations)
            for size in resblock_kernel_sizes
        )

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, dim, T) to (B, dim / 2, T * factor); ``padding`` (B, 1, T) is True past the end."""
        x = self.upsample(_zeroed(F.leaky_relu(x, _SLOPE), padding))
        if padding is not None:
            padding = padding.repeat_interleave(self.factor, dim=2)
        return sum(block(x, padding=padding) for block in self.resblocks) / len(self.resblocks)


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input ([1]_, type 1).

    Parameters
    ----------
    dim : channels.
    kernel_size : samples, odd.
    dilations : of the first convolution of each pair.
    """

    def __init__(self, dim: int, *, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(
            nn.ModuleList(
                _conv(dim, dim, kernel_size=kernel_size, dilation=size) for size in (dilation, 1)
            )
            for dilation in dilations
        )

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, dim, T) to (B, dim, T); what ``padding`` (B, 1, T) marks does not reach the rest."""
        for pair in self.pairs:
            branch = x
            for conv in pair:
                branch = conv(_zeroed(F.leaky_relu(branch, _SLOPE), padding))
            x = x + branch
        return x


def _conv(input_dim: int, output_dim: int, *, kernel_size: int, dilation: int = 1) -> nn.Module:
    """Convolution with weight normalization that keeps the length."""
    padding = dilation * (kernel_size // 2)
    return weight_norm(
        nn.Conv1d(input_dim, output_dim, kernel_size, padding=padding, dilation=dilation)
    )


def _zeroed(x: Tensor, padding: Tensor | None) -> Tensor:
    return x if padding is None else x.masked_fill(padding, 0)


def _check_steps(dim: int, factors: Sequence[int], kernel_sizes: Sequence[int]) -> None:
    if len(factors) == 0 or len(factors) != len(kernel_sizes):
        raise ValueError(
            "upsample_factors and upsample_kernel_sizes need one entry per step, "
            f"got {list(factors)} and {list(kernel_sizes)}"
        )
    for factor, kernel_size in zip(factors, kernel_sizes, strict=True):
        if factor < 1 or kernel_size < factor or (kernel_size - factor) % 2:
            raise ValueError(
                "an entry of upsample_kernel_sizes must be its factor plus an even number, "
                f"got {kernel_size} for factor {factor}"
            )
    if dim < 1 or dim % 2 ** len(factors):
        raise ValueError(f"dim must be a multiple of 2^{len(factors)}, halved by each step: {dim}")


def _check_resblocks(kernel_sizes: Sequence[int], dilations: Sequence[int]) -> None:
    if len(kernel_sizes) == 0 or not all(size > 0 and size % 2 for size in kernel_sizes):
        raise ValueError(f"resblock_kernel_sizes must be odd, got {list(kernel_sizes)}")
    if min(dilations, default=0) < 1:
        raise ValueError(f"resblock_dilations must be at least 1, got {list(dilations)}")
