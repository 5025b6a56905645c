"""The ablation's mixers: what stands in the place of a focal block (paper, section 4.6, Table 6).

Each maps (B, N, dim) to the same shape, takes ``mask`` and leaves padded frames at 0, as
`focalcodec.focalnet.FocalBlock` does; ``mixer(dim)`` is how compressor and decompressor make them.
The paper gives no sizes. Defaults here have the 12 dim^2 weights of the focal block, so that a row
of the ablation compares ways to mix frames and not numbers of parameters:

============== ============================================== =================================
block          weights / dim^2                                mixes frames by
============== ============================================== =================================
FocalBlock     4 modulation + 8 feed-forward                  gated contexts, average over all
ConformerBlock 5 attention + 3 convolution + 4 feed-forward   attention to all, 31 frames
AMPBlock       4 convolutions of 3 taps                       dilated convolutions
LinearBlock    2 linear maps of 6                             nothing
============== ============================================== =================================

Time and memory of the Conformer's attention grow with the square of the frames.

References
----------
.. [1] Gulati et al., 2020, "Conformer", arXiv:2005.08100.
.. [2] Lee et al., 2023, "BigVGAN", arXiv:2206.04658.
.. [3] Dai et al., 2019, "Transformer-XL", arXiv:1901.02860, section 3.3.
.. [4] Karras et al., 2021, "Alias-Free Generative Adversarial Networks", arXiv:2106.12423.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from focalcodec.activations import Snake
from focalcodec.masking import zero_padding

_TAPS = 12  # of the low-pass filter around Snake, at twice the frame rate


class ConformerBlock(nn.Module):
    """Conformer layer: half a feed-forward part, attention, convolution, the other half [1]_.

    The arithmetic is that of ``speechbrain.lobes.models.transformer.Conformer``'s
    ``ConformerEncoderLayer`` with relative positions, on whose weights it gives the same. Its
    padding, unlike there, reaches no real frame through the convolution.

    Parameters
    ----------
    dim : channels, even.
    num_heads : attention heads, a divisor of ``dim``.
    kernel_size : frames of the convolution, odd.
    ffn_ratio : hidden channels of each feed-forward part, as a multiple of ``dim``.
    dropout : probability in and behind each part.

    Attributes
    ----------
    activation : class of the nonlinearity of the feed-forward and convolution parts. Not an
        argument: what a codec's configuration may say stays plain values.

    Raises
    ------
    ValueError : if ``dim`` is odd or no multiple of ``num_heads``, or ``kernel_size`` is even.
    """

    activation: ClassVar[type[nn.Module]] = nn.SiLU

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        kernel_size: int = 31,
        ffn_ratio: float = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads or dim % 2 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                "dim must be even and a multiple of num_heads, and kernel_size odd, "
                f"got dim={dim}, num_heads={num_heads}, kernel_size={kernel_size}"
            )
        self.dim = dim
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.ffn_ratio = ffn_ratio
        self.dropout = dropout
        options = {"dropout": dropout, "activation": self.activation}
        ffn_dim = round(dim * ffn_ratio)
        self.feed_forward1 = _feed_forward(dim, ffn_dim=ffn_dim, **options)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, num_heads=num_heads, dropout=dropout)
        self.convolution = ConvolutionModule(dim, kernel_size=kernel_size, **options)
        self.feed_forward2 = _feed_forward(dim, ffn_dim=ffn_dim, **options)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Mix (B, N, dim) over frames and channels; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing.
        """
        x = zero_padding(x, mask=mask)
        x = x + 0.5 * self.feed_forward1(x)
        x = x + self.attention(self.attention_norm(x), mask=mask)
        x = x + self.convolution(x, mask=mask)
        x = self.norm(x + 0.5 * self.feed_forward2(x))
        return zero_padding(x, mask=mask)


class RelativeAttention(nn.Module):
    """Self-attention whose scores also depend on the distance of two frames ([3]_, equation 5).

    Two things are SpeechBrain's: scores are divided by the square root of ``dim`` rather than of a
    head's channels, and past and future at one distance have the same sinusoids.

    Parameters
    ----------
    dim : channels, even and a multiple of ``num_heads``.
    num_heads : attention heads.
    dropout : probability of leaving out an attention weight.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.distance_proj = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.distance_bias = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.out_proj = nn.Linear(dim, dim)
        for weight in (self.in_proj.weight, self.content_bias, self.distance_bias):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, dim) to (B, N, dim); frames where ``mask`` is False are attended by none."""
        num_frames = x.shape[1]
        heads = self.in_proj(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)  # (B, heads, N, dim / heads) each
        scale = self.dim**-0.5
        distances = _sinusoids(num_frames, dim=self.dim, like=x)
        distances = self.distance_proj(distances).unflatten(1, (self.num_heads, -1))
        by_distance = (scale * (query + self.distance_bias[:, None])) @ distances.permute(1, 2, 0)
        frames = torch.arange(num_frames, device=x.device)
        index = (frames[:, None] - frames).abs().expand_as(by_distance)
        scores = (scale * (query + self.content_bias[:, None])) @ key.transpose(2, 3)
        scores = scores + by_distance.gather(3, index)  # (B, heads, N, N)
        if mask is not None:
            # Finite, so that an item without real frames gives numbers.
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        x = weights.to(value.dtype) @ value
        return self.out_proj(x.transpose(1, 2).flatten(2))


class ConvolutionModule(nn.Module):
    """Gated pointwise map, depthwise convolution, LayerNorm, SiLU, a pointwise map ([1]_, 2.2).

    LayerNorm is in the place of the paper's batch normalization, as in SpeechBrain.

    Parameters
    ----------
    dim : channels.
    kernel_size : frames, odd.
    dropout : probability at the end.
    activation : class of the nonlinearity in the place of SiLU.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.input_norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.dwconv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.activation = activation()
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, dim) to (B, N, dim); frames where ``mask`` is False do not reach the others."""
        x = zero_padding(F.glu(self.in_proj(self.input_norm(x))), mask=mask)
        x = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        x = self.out_proj(self.activation(self.norm(x)))
        return F.dropout(x, self.dropout, self.training)


class AMPBlock(nn.Module):
    """Anti-aliased multi-periodicity block: Snake without aliasing and dilated convolutions [2]_.

    For each dilation: Snake, dilated convolution, Snake, plain convolution, added to the input. The
    convolutions have weight normalization, as in BigVGAN; BigVGAN's own has three dilations, the
    default here two (see the module).

    Parameters
    ----------
    dim : channels.
    kernel_size : frames of every convolution, odd.
    dilations : of the first convolution of each pair, frames.

    Raises
    ------
    ValueError : if ``kernel_size`` is even, there is no dilation or one is below 1.
    """

    def __init__(
        self, dim: int, *, kernel_size: int = 3, dilations: Sequence[int] = (1, 3)
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0 or min(dilations, default=0) < 1:
            raise ValueError(
                "kernel_size must be odd and dilations hold at least one, each at least 1, "
                f"got {kernel_size} and {list(dilations)}"
            )
        self.dim = dim
        self.kernel_size = kernel_size
        self.dilations = tuple(dilations)
        all_dilations = [dilation for first in dilations for dilation in (first, 1)]
        self.activations = nn.ModuleList(AntiAliasedSnake(dim) for _ in all_dilations)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(dim, dim, kernel_size, padding="same", dilation=dilation))
            for dilation in all_dilations
        )

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Mix (B, N, dim) over frames and channels; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing.
        """
        padding = None if mask is None else ~mask[:, None]
        x = x.transpose(1, 2)  # (B, dim, N)
        branch = x
        for i, (activation, conv) in enumerate(zip(self.activations, self.convs, strict=True)):
            branch = activation(branch, mask=mask)
            branch = conv(branch if padding is None else branch.masked_fill(padding, 0))
            if i % 2 == 1:
                x = branch = x + branch
        return zero_padding(x.transpose(1, 2), mask=mask)


class AntiAliasedSnake(nn.Module):
    """Snake at twice the frame rate, between two low-pass filters [4]_.

    The nonlinearity makes frequencies above half the frame rate, which would fold back; at twice
    the rate a filter can remove them. At an item's ends its outermost frames are repeated.

    Parameters
    ----------
    dim : channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.snake = Snake(dim)
        low_pass = kaiser_sinc(cutoff=0.25, half_width=0.3, num_taps=_TAPS)
        self.register_buffer("low_pass", low_pass, persistent=False)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, dim, N) to (B, dim, N); frames where ``mask`` (B, N) is False enter nothing."""
        x = self.snake(self._upsample(_hold_end(x, mask=mask)))
        mask = None if mask is None else mask.repeat_interleave(2, dim=1)
        return self._downsample(_hold_end(x, mask=mask))

    def _upsample(self, x: Tensor) -> Tensor:
        """(B, dim, N) to (B, dim, 2 N): even and odd samples are two filters of the same frames."""
        taps = 2 * self.low_pass.to(x.dtype).flip(0)
        even, odd = F.pad(taps[0::2], (0, 1)), F.pad(taps[1::2], (1, 0))
        reach = _TAPS // 4
        y = F.pad(x, (reach, reach), mode="replicate").flatten(0, 1)[:, None]
        y = F.conv1d(y, torch.stack([even, odd])[:, None])  # (B dim, 2, N)
        return y.transpose(1, 2).reshape(*x.shape[:2], -1)

    def _downsample(self, x: Tensor) -> Tensor:
        """(B, dim, 2 N) to (B, dim, N)."""
        y = F.pad(x, (_TAPS // 2 - 1, _TAPS // 2), mode="replicate").flatten(0, 1)[:, None]
        y = F.conv1d(y, self.low_pass.to(x.dtype)[None, None], stride=2)
        return y.view(*x.shape[:2], -1)


class LinearBlock(nn.Module):
    """LayerNorm and two linear layers without a nonlinearity, added to the input: mixes no frames.

    Parameters
    ----------
    dim : channels.
    ratio : channels between the two layers, as a multiple of ``dim``.

    Raises
    ------
    ValueError : if ``ratio`` makes less than one channel.
    """

    def __init__(self, dim: int, *, ratio: float = 6) -> None:
        super().__init__()
        if round(dim * ratio) < 1:
            raise ValueError(f"ratio must make at least one channel of {dim}, got {ratio}")
        self.dim = dim
        self.ratio = ratio
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, round(dim * ratio))
        self.out_proj = nn.Linear(round(dim * ratio), dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, dim) frame by frame; frames where ``mask`` (B, N) is False become 0."""
        x = zero_padding(x, mask=mask)
        return zero_padding(x + self.out_proj(self.in_proj(self.norm(x))), mask=mask)


def kaiser_sinc(*, cutoff: float, half_width: float, num_taps: int) -> Tensor:
    """Low-pass filter: a sinc under a Kaiser window, of gain 1 at frequency 0.

    Parameters
    ----------
    cutoff : where the gain has fallen to 1/2, cycles a sample.
    half_width : half the width of the transition, as BigVGAN has it; sets the window's shape.
    num_taps : length, even.

    Returns
    -------
    (num_taps,) float32.

    References
    ----------
    Kaiser's formulas for the window's shape from the attenuation, in the form of BigVGAN [2]_ and
    of StyleGAN3 [4]_, appendix C.1.
    """
    attenuation = 2.285 * (num_taps // 2 - 1) * math.pi * 4 * half_width + 7.95  # dB
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beyond = max(attenuation - 21, 0.0)
        beta = 0.5842 * beyond**0.4 + 0.07886 * beyond
    window = torch.kaiser_window(num_taps, periodic=False, beta=beta)
    time = torch.arange(num_taps) - (num_taps - 1) / 2
    taps = window * torch.sinc(2 * cutoff * time)
    return taps / taps.sum()


def _feed_forward(
    dim: int, *, ffn_dim: int, dropout: float, activation: type[nn.Module]
) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, ffn_dim),
        activation(),
        nn.Dropout(dropout),
        nn.Linear(ffn_dim, dim),
        nn.Dropout(dropout),
    )


def _sinusoids(size: int, *, dim: int, like: Tensor) -> Tensor:
    """(size, dim) sines and cosines of distances 0 to size - 1, one frequency after the other."""
    rates = torch.arange(0, dim, 2, device=like.device) * (-math.log(10000.0) / dim)
    angles = torch.arange(size, device=like.device)[:, None] * rates.exp()
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


def _hold_end(x: Tensor, *, mask: Tensor | None) -> Tensor:
    """Repeat the last real frame of (B, C, N) over an item's padding."""
    if mask is None:
        return x
    last = mask.sum(dim=1).clamp(min=1) - 1
    last = x.gather(2, last[:, None, None].expand(-1, x.shape[1], 1))
    return torch.where(mask[:, None], x, last)
