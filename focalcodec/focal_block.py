"""Focal modulation, what mixes frames inside of compressor and decompressor.

Channels are last, (B, N, C). In causal blocks all that reaches over frames reaches back only: the
average over time becomes a depthwise convolution over ``pool_size`` frames, and LayerNorm becomes
`DynamicTanh`. With a ``state`` they go on where the call before ended (`focalcodec.streaming`).

References
----------
.. [1] Della Libera et al., 2025, arXiv:2502.04465, sections 3 and D.1.
.. [2] Yang et al., 2022, "Focal Modulation Networks", arXiv:2203.11926.
.. [3] Della Libera et al., 2025, "FocalCodec-Stream", arXiv:2509.16195.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.activations import DynamicTanh
from focalcodec.linear_map import PointwiseConv
from focalcodec.masking import zero_padding
from focalcodec.streaming import FrameConv, State


class FocalBlock(nn.Module):
    """Transformer block with focal modulation in the place of self-attention ([1]_, section 3).

    Parameters
    ----------
    dim : channels.
    window : kernel size of the first focal level, frames.
    level : number of focal levels in front of the global one.
    factor : frames by which the kernel grows from one level to the next.
    ffn_ratio : hidden channels of the feed-forward part, as a multiple of ``dim``.
    layer_scale : initial value of the learned scales of both branches (the paper: 1e-4); None for
        none (SpeechBrain's recipe and the published checkpoints).
    post_norm : normalize the branches' results instead of their inputs.
    normalize_modulator : divide the modulator by the number of levels.
    dropout : probability at the end of both branches.
    causal : reach back only, and normalize by `DynamicTanh`.
    pool_size : frames of the convolution in the place of the average; causal only.
    tanh_scale : initial value of the scale in `DynamicTanh`; causal only.
    """

    def __init__(
        self,
        dim: int,
        *,
        window: int = 7,
        level: int = 2,
        factor: int = 2,
        ffn_ratio: float = 4,
        layer_scale: float | None = None,
        post_norm: bool = False,
        normalize_modulator: bool = False,
        dropout: float = 0.0,
        causal: bool = False,
        pool_size: int = 512,
        tanh_scale: float = 0.5,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.window = window
        self.level = level
        self.factor = factor
        self.ffn_ratio = ffn_ratio
        self.layer_scale = layer_scale
        self.post_norm = post_norm
        self.normalize_modulator = normalize_modulator
        self.dropout = dropout
        self.causal = causal
        self.pool_size = pool_size
        self.tanh_scale = tanh_scale
        self.modulation_norm = _norm(dim, causal, tanh_scale)
        self.modulation = FocalModulation(
            dim,
            window=window,
            level=level,
            factor=factor,
            post_norm=post_norm,
            normalize_modulator=normalize_modulator,
            dropout=dropout,
            causal=causal,
            pool_size=pool_size,
            tanh_scale=tanh_scale,
        )
        self.feed_forward_norm = _norm(dim, causal, tanh_scale)
        self.feed_forward = FeedForward(dim, ffn_dim=round(dim * ffn_ratio), dropout=dropout)
        if layer_scale is not None:
            self.modulation_gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.feed_forward_gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Mix (B, N, dim) over frames and channels; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing. ``state`` is where
        causal streams go on.
        """
        x = zero_padding(x, mask=mask)
        if self.post_norm:
            modulated = self.modulation_norm(self.modulation(x, mask=mask, state=state))
        else:
            modulated = self.modulation(self.modulation_norm(x), mask=mask, state=state)
        x = x + (modulated if self.layer_scale is None else self.modulation_gamma * modulated)
        if self.post_norm:
            fed = self.feed_forward_norm(self.feed_forward(x))
        else:
            fed = self.feed_forward(self.feed_forward_norm(x))
        x = x + (fed if self.layer_scale is None else self.feed_forward_gamma * fed)
        return zero_padding(x, mask=mask)


class FocalModulation(nn.Module):
    """Each frame's query times a gated sum of contexts of growing reach [2]_.

    The reach grows with a stack of depthwise convolutions; the last context is the average over
    time, or of causal modulation a convolution over ``pool_size`` frames. The paper speaks of
    exponentially growing kernels; the published code adds ``factor`` frames a level (7, 9, ...),
    and so do we.

    Parameters
    ----------
    dim, window, level, factor, post_norm, normalize_modulator, causal, pool_size, tanh_scale : as
        in `FocalBlock`; ``post_norm`` here normalizes the product of query and modulator.
    dropout : probability at the end.

    Raises
    ------
    ValueError : if ``window``, ``level`` or ``pool_size`` is below 1, or ``factor`` below 0.
    """

    def __init__(
        self,
        dim: int,
        *,
        window: int = 7,
        level: int = 2,
        factor: int = 2,
        post_norm: bool = False,
        normalize_modulator: bool = False,
        dropout: float = 0.0,
        causal: bool = False,
        pool_size: int = 512,
        tanh_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if min(window, level, pool_size) < 1 or factor < 0:
            raise ValueError(
                "window, level and pool_size must be at least 1 and factor at least 0, "
                f"got window={window}, level={level}, pool_size={pool_size}, factor={factor}"
            )
        self.dim = dim
        self.window = window
        self.level = level
        self.factor = factor
        self.post_norm = post_norm
        self.normalize_modulator = normalize_modulator
        self.dropout = dropout
        self.causal = causal
        self.pool_size = pool_size
        self.tanh_scale = tanh_scale
        self.in_proj = nn.Linear(dim, 2 * dim + level + 1)
        sizes = [window + factor * i for i in range(level)] + [pool_size] * causal
        self.layers = nn.ModuleList(
            nn.Sequential(
                FrameConv(dim, dim, kernel_size=size, groups=dim, causal=causal), nn.GELU()
            )
            for size in sizes
        )
        self.context_proj = PointwiseConv(dim, dim)
        self.norm = _norm(dim, causal, tanh_scale) if post_norm else nn.Identity()
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Mix (B, N, dim) over frames; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing. ``state`` is where
        causal streams go on.
        """
        query, context, gates = self.in_proj(x).split([self.dim, self.dim, self.level + 1], dim=-1)
        modulator = None
        for i, (conv, activation) in enumerate(self.layers):
            context = activation(conv(zero_padding(context, mask=mask), state=state))
            gated = context * gates[..., i : i + 1]
            modulator = gated if modulator is None else modulator + gated
        if not self.causal:
            modulator = modulator + F.gelu(_average(context, mask=mask)) * gates[..., -1:]
        if self.normalize_modulator:
            modulator = modulator / (self.level + 1)
        x = self.out_proj(self.norm(query * self.context_proj(modulator)))
        return zero_padding(F.dropout(x, self.dropout, self.training), mask=mask)


class FeedForward(nn.Module):
    """Linear, GELU, linear on every frame, through ``ffn_dim`` channels."""

    def __init__(self, dim: int, *, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, ffn_dim)
        self.out_proj = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        x = self.out_proj(F.gelu(self.in_proj(x)))
        return F.dropout(x, self.dropout, self.training)


def _norm(dim: int, causal: bool, tanh_scale: float) -> nn.Module:
    return DynamicTanh(tanh_scale) if causal else nn.LayerNorm(dim)


def _average(x: Tensor, *, mask: Tensor | None) -> Tensor:
    """(B, N, C) to (B, 1, C): mean over real frames, accumulated in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(dim=1, keepdim=True, dtype=dtype).to(x.dtype)
    total = zero_padding(x, mask=mask).sum(dim=1, keepdim=True, dtype=dtype)
    count = mask.sum(dim=1).clamp(min=1)  # an item without real frames gives 0, not NaN
    return (total / count[:, None, None]).to(x.dtype)
