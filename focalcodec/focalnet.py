"""Focal modulation: the compressor in front of the quantizer, the decompressor behind it.

Focal downscaling layers turn feats (B, N, H) into lats (B, L, D), focal upscaling layers turn codes
into qfeats [1]_. What mixes frames inside a layer is injected as a factory ``mixer(dim)``, the
nonlinearity of the scaling steps as a factory ``activation(dim)``.

Everything here keeps channels last, (B, N, C); only activations see channels first, (B, C, N).
Parameters have the names and shapes of the published checkpoints.

Padding never changes a result: with ``mask``, padded frames are zero wherever frames are mixed, the
global average runs over real frames, and results are zero at padded frames.

References
----------
.. [1] Della Libera et al., 2025, arXiv:2502.04465, sections 3 and D.1.
.. [2] Yang et al., 2022, "Focal Modulation Networks", arXiv:2203.11926.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# hyperparams.yaml of earlier runs names these two here.
from focalcodec.activations import LeakyReLU as LeakyReLU
from focalcodec.activations import Snake as Snake
from focalcodec.masking import check_frames, zero_padding


class Compressor(nn.Module):
    """Feats to unnormalized lats: focal downscaling layers, then a projection to ``output_dim``.

    Parameters
    ----------
    input_dim : channels of feats.
    output_dim : channels of lats, the entries of a code.
    hidden_dims : channels of each layer.
    downscale_factors : frames that each layer joins into one, >= 1; as many as ``hidden_dims``.
    mixer : factory; ``mixer(dim)`` maps (B, N, dim) to the same shape and takes ``mask``.
    activation : factory; ``activation(dim)`` maps (B, dim, N) elementwise.
    dropout : probability in front of the projection.

    Raises
    ------
    ValueError : if the lists differ in length or are empty, or a factor is below 1.

    Attributes
    ----------
    recomputes : while training, keep only what enters each layer, and compute the rest again in the
        backward pass: less memory for more time, the same gradients. False at first.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        hidden_dims: Sequence[int],
        downscale_factors: Sequence[int],
        mixer: Callable[[int], nn.Module],
        activation: Callable[[int], nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_layers(hidden_dims, factors=downscale_factors, name="downscale_factors")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.hidden_dims = tuple(hidden_dims)
        self.downscale_factors = tuple(downscale_factors)
        self.mixer = mixer
        self.activation = activation
        self.dropout = dropout
        self.layers = nn.ModuleList()
        dim = input_dim
        for hidden_dim, factor in zip(hidden_dims, downscale_factors, strict=True):
            downscale = DownScale(dim, hidden_dim, factor=factor, activation=activation(hidden_dim))
            layer = {"downscale": downscale, "focal_block": mixer(hidden_dim)}
            self.layers.append(nn.ModuleDict(layer))
            dim = hidden_dim
        self.out_proj = nn.Linear(dim, output_dim)
        self.recomputes = False

    def forward(self, feats: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compress.

        Parameters
        ----------
        feats : (B, N, input_dim).
        mask : (B, N) bool, True for real frames; None for all.

        Returns
        -------
        (B, L, output_dim), L = N divided by each factor in turn and rounded up. Its mask is
        ``mask[:, ::prod(downscale_factors)]``; lats outside it are 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(feats, dim=self.input_dim, mask=mask, name="feats")
        x = feats
        run = _recomputed if self.recomputes and self.training else _once
        for layer in self.layers:
            tok_mask = None if mask is None else mask[:, :: layer["downscale"].factor]
            x = run(_downscaled, layer, x, mask, tok_mask)
            mask = tok_mask
        x = self.out_proj(F.dropout(x, self.dropout, self.training))
        return zero_padding(x, mask=mask)


class Decompressor(nn.Module):
    """Codes to qfeats: a projection, then focal upscaling layers; mirrors `Compressor`.

    Parameters
    ----------
    input_dim : channels of codes, their entries.
    output_dim : channels of qfeats.
    hidden_dims : channels inside each layer.
    upscale_factors : frames that each layer makes of one, >= 1; as many as ``hidden_dims``.
    mixer, activation : as in `Compressor`.
    dropout : probability behind the projection.

    Raises
    ------
    ValueError : if the lists differ in length or are empty, or a factor is below 1.

    Attributes
    ----------
    recomputes : as in `Compressor`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        hidden_dims: Sequence[int],
        upscale_factors: Sequence[int],
        mixer: Callable[[int], nn.Module],
        activation: Callable[[int], nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_layers(hidden_dims, factors=upscale_factors, name="upscale_factors")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.hidden_dims = tuple(hidden_dims)
        self.upscale_factors = tuple(upscale_factors)
        self.mixer = mixer
        self.activation = activation
        self.dropout = dropout
        self.in_proj = nn.Linear(input_dim, self.hidden_dims[0])
        self.layers = nn.ModuleList()
        next_dims = (*self.hidden_dims[1:], output_dim)
        for dim, next_dim, factor in zip(hidden_dims, next_dims, upscale_factors, strict=True):
            upscale = UpScale(dim, next_dim, factor=factor, activation=activation(dim))
            self.layers.append(nn.ModuleDict({"focal_block": mixer(dim), "upscale": upscale}))
        self.recomputes = False

    def forward(self, codes: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Decompress.

        Parameters
        ----------
        codes : (B, L, input_dim).
        mask : (B, L) bool, True for real tokens; None for all.

        Returns
        -------
        (B, L * prod(upscale_factors), output_dim). Its mask is ``mask`` with each entry repeated
        ``prod(upscale_factors)`` times; qfeats outside it are 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(codes, dim=self.input_dim, mask=mask, name="codes")
        x = self.in_proj(zero_padding(codes, mask=mask))
        x = zero_padding(F.dropout(x, self.dropout, self.training), mask=mask)
        run = _recomputed if self.recomputes and self.training else _once
        for layer in self.layers:
            x = run(_upscaled, layer, x, mask)
            if mask is not None:
                mask = mask.repeat_interleave(layer["upscale"].factor, dim=1)
        return x


def _downscaled(
    layer: nn.ModuleDict, x: Tensor, mask: Tensor | None, tok_mask: Tensor | None
) -> Tensor:
    return layer["focal_block"](layer["downscale"](x, mask=mask), mask=tok_mask)


def _upscaled(layer: nn.ModuleDict, x: Tensor, mask: Tensor | None) -> Tensor:
    return layer["upscale"](layer["focal_block"](x, mask=mask), mask=mask)


def _once(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def _recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False)


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
        self.modulation_norm = nn.LayerNorm(dim)
        self.modulation = FocalModulation(
            dim,
            window=window,
            level=level,
            factor=factor,
            post_norm=post_norm,
            normalize_modulator=normalize_modulator,
            dropout=dropout,
        )
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim=round(dim * ffn_ratio), dropout=dropout)
        if layer_scale is not None:
            self.modulation_gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.feed_forward_gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Mix (B, N, dim) over frames and channels; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing.
        """
        x = zero_padding(x, mask=mask)
        if self.post_norm:
            modulated = self.modulation_norm(self.modulation(x, mask=mask))
        else:
            modulated = self.modulation(self.modulation_norm(x), mask=mask)
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
    time. The paper speaks of exponentially growing kernels; the published code adds ``factor``
    frames a level (7, 9, ...), and so do we.

    Parameters
    ----------
    dim, window, level, factor, post_norm, normalize_modulator : as in `FocalBlock`; ``post_norm``
        here normalizes the product of query and modulator.
    dropout : probability at the end.

    Raises
    ------
    ValueError : if ``window`` or ``level`` is below 1, or ``factor`` below 0.
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
    ) -> None:
        super().__init__()
        if window < 1 or level < 1 or factor < 0:
            raise ValueError(
                "window and level must be at least 1 and factor at least 0, "
                f"got window={window}, level={level}, factor={factor}"
            )
        self.dim = dim
        self.window = window
        self.level = level
        self.factor = factor
        self.post_norm = post_norm
        self.normalize_modulator = normalize_modulator
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, 2 * dim + level + 1)
        self.layers = nn.ModuleList(
            nn.Sequential(_DepthwiseConv(dim, kernel_size=window + factor * i), nn.GELU())
            for i in range(level)
        )
        self.context_proj = nn.Conv1d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim) if post_norm else nn.Identity()
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Mix (B, N, dim) over frames; ``mask`` (B, N) bool is True for real frames.

        Padded frames of the result are 0 and those of ``x`` enter nothing.
        """
        query, context, gates = self.in_proj(x).split([self.dim, self.dim, self.level + 1], dim=-1)
        modulator = None
        for i, layer in enumerate(self.layers):
            context = layer(zero_padding(context, mask=mask))
            gated = context * gates[..., i : i + 1]
            modulator = gated if modulator is None else modulator + gated
        modulator = modulator + F.gelu(_average(context, mask=mask)) * gates[..., -1:]
        if self.normalize_modulator:
            modulator = modulator / (self.level + 1)
        modulator = F.linear(modulator, self.context_proj.weight[..., 0], self.context_proj.bias)
        x = self.out_proj(self.norm(query * modulator))
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


class DownScale(nn.Module):
    """Join every ``factor`` frames into one by a linear map, then apply the activation.

    Parameters
    ----------
    input_dim, output_dim : channels.
    factor : frames joined, >= 1; 1 is a linear projection.
    activation : module on (B, output_dim, L).
    """

    def __init__(
        self, input_dim: int, output_dim: int, *, factor: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.factor = factor
        self.downscale = nn.Conv1d(input_dim, output_dim, factor, stride=factor)
        self.activation = activation

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, input_dim) to (B, ceil(N / factor), output_dim), 0 outside ``mask[:, ::factor]``.

        The end of an item is padded with zeros to a multiple of ``factor``. The published code does
        so only for factors 1 and 2 and loses frames at 3
        (test_focalnet.py::test_downscale_keeps_the_last_frames).
        """
        x = zero_padding(x, mask=mask)
        if self.factor > 1:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        # A convolution whose stride is its kernel size is one linear map of joined frames.
        x = x.reshape(x.shape[0], -1, self.factor * self.input_dim)
        weight = self.downscale.weight.transpose(1, 2).reshape(self.output_dim, -1)
        x = F.linear(x, weight, self.downscale.bias)
        x = self.activation(x.transpose(1, 2)).transpose(1, 2)
        return zero_padding(x, mask=None if mask is None else mask[:, :: self.factor])


class UpScale(nn.Module):
    """Apply the activation, then make ``factor`` frames of each by a linear map.

    Parameters
    ----------
    input_dim, output_dim : channels.
    factor : frames made of one, >= 1; 1 is a linear projection.
    activation : module on (B, input_dim, L).
    """

    def __init__(
        self, input_dim: int, output_dim: int, *, factor: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.factor = factor
        self.activation = activation
        self.upscale = nn.ConvTranspose1d(input_dim, output_dim, factor, stride=factor)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, L, input_dim) to (B, L * factor, output_dim), 0 at padded frames."""
        x = self.activation(x.transpose(1, 2)).transpose(1, 2)
        weight = self.upscale.weight.permute(2, 1, 0).flatten(0, 1)
        x = F.linear(x, weight, self.upscale.bias.repeat(self.factor))
        return zero_padding(x, mask=mask).reshape(x.shape[0], -1, self.output_dim)


class _DepthwiseConv(nn.Conv1d):
    """Depthwise convolution of (B, N, dim) that keeps N."""

    def __init__(self, dim: int, *, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=(kernel_size - 1) // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (B, dim, N)
        if self.kernel_size[0] % 2 == 0:
            x = F.pad(x, (0, 1))  # an even kernel reaches one frame further ahead than back
        return super().forward(x).transpose(1, 2)


def _average(x: Tensor, *, mask: Tensor | None) -> Tensor:
    """(B, N, C) to (B, 1, C): mean over real frames, accumulated in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(dim=1, keepdim=True, dtype=dtype).to(x.dtype)
    total = zero_padding(x, mask=mask).sum(dim=1, keepdim=True, dtype=dtype)
    count = mask.sum(dim=1).clamp(min=1)  # an item without real frames gives 0, not NaN
    return (total / count[:, None, None]).to(x.dtype)


def _check_layers(hidden_dims: Sequence[int], *, factors: Sequence[int], name: str) -> None:
    if len(hidden_dims) == 0 or len(hidden_dims) != len(factors):
        raise ValueError(
            f"hidden_dims and {name} need one entry per layer, "
            f"got {list(hidden_dims)} and {list(factors)}"
        )
    if min(factors) < 1:
        raise ValueError(f"{name} must be at least 1, got {list(factors)}")
