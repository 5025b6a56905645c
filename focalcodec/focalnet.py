"""Focal modulation: the compressor in front of the quantizer, the decompressor behind it.

Focal downscaling layers turn feats (B, N, H) into lats (B, L, D), focal upscaling layers turn codes
into qfeats [1]_. What mixes frames inside a layer is injected as a factory ``mixer(dim)``, the
nonlinearity of the scaling steps as a factory ``activation(dim)``.

Everything here keeps channels last, (B, N, C); only activations see channels first, (B, C, N).
Parameters have the names and shapes of the published checkpoints.

Padding never changes a result: with ``mask``, padded frames are zero wherever frames are mixed, and
results are zero at padded frames.

The causal form [2]_ reaches back only, but for a refiner at the end that sees the frames of one
chunk together. With a ``state`` it goes on where the call before ended (`focalcodec.streaming`).

References
----------
.. [1] Della Libera et al., 2025, arXiv:2502.04465, sections 3 and D.1.
.. [2] Della Libera et al., 2025, "FocalCodec-Stream", arXiv:2509.16195.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# hyperparams.yaml of runs names these here.
from focalcodec.activations import LeakyReLU as LeakyReLU
from focalcodec.activations import Snake as Snake
from focalcodec.focal_block import FocalBlock as FocalBlock
from focalcodec.linear_map import LinearMap
from focalcodec.masking import check_frames, zero_padding
from focalcodec.streaming import LeftContext, State


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
    causal : no frame of lats sees feats behind it; ``mixer`` makes causal modules then.

    Raises
    ------
    ValueError : if the lists differ in length or are empty, a factor is below 1, or the mixers are
        not as causal as ``causal`` says.

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
        causal: bool = False,
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
        self.causal = causal
        self.layers = nn.ModuleList()
        dim = input_dim
        for hidden_dim, factor in zip(hidden_dims, downscale_factors, strict=True):
            downscale = DownScale(
                dim, hidden_dim, factor=factor, activation=activation(hidden_dim), causal=causal
            )
            layer = {"downscale": downscale, "focal_block": _mixer(mixer, hidden_dim, causal)}
            self.layers.append(nn.ModuleDict(layer))
            dim = hidden_dim
        self.out_proj = nn.Linear(dim, output_dim)
        self.recomputes = False

    def forward(
        self, feats: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Compress.

        Parameters
        ----------
        feats : (B, N, input_dim).
        mask : (B, N) bool, True for real frames; None for all.
        state : where causal streams go on; N is then a multiple of all factors, but for the end.

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
            x = run(_downscaled, layer, x, mask, tok_mask, state)
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
    mixer, activation, causal : as in `Compressor`.
    dropout : probability behind the projection.
    last_mixer : factory for the last layer; None for ``mixer``.
    lookahead_size : frames of qfeats that a frame may see ahead through a `ChunkRefiner` at the
        end; 0 for none.

    Raises
    ------
    ValueError : if the lists differ in length or are empty, a factor is below 1, or the mixers are
        not as causal as ``causal`` says.

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
        causal: bool = False,
        last_mixer: Callable[[int], nn.Module] | None = None,
        lookahead_size: int = 0,
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
        self.causal = causal
        self.last_mixer = last_mixer
        self.lookahead_size = lookahead_size
        self.chunk_frames = 1 + lookahead_size
        self.in_proj = nn.Linear(input_dim, self.hidden_dims[0])
        self.layers = nn.ModuleList()
        next_dims = (*self.hidden_dims[1:], output_dim)
        mixers = [mixer] * (len(self.hidden_dims) - 1) + [last_mixer or mixer]
        for dim, next_dim, factor, make in zip(
            hidden_dims, next_dims, upscale_factors, mixers, strict=True
        ):
            upscale = UpScale(dim, next_dim, factor=factor, activation=activation(dim))
            layer = {"focal_block": _mixer(make, dim, causal), "upscale": upscale}
            self.layers.append(nn.ModuleDict(layer))
        self.refiner = None
        if lookahead_size > 0 and not causal:
            raise ValueError(
                f"lookahead_size is {lookahead_size}, but a decompressor with full context has no "
                "use for a refiner; set it to 0"
            )
        if lookahead_size > 0:
            self.refiner = ChunkRefiner(output_dim, chunk_frames=self.chunk_frames)
        self.recomputes = False

    def forward(
        self, codes: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Decompress.

        Parameters
        ----------
        codes : (B, L, input_dim).
        mask : (B, L) bool, True for real tokens; None for all.
        state : where causal streams go on, from a chunk's border; L tokens are then whole chunks of
            ``chunk_frames`` frames, but for the end.

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
            x = run(_upscaled, layer, x, mask, state)
            if mask is not None:
                mask = mask.repeat_interleave(layer["upscale"].factor, dim=1)
        return x if self.refiner is None else zero_padding(self.refiner(x), mask=mask)


def _downscaled(
    layer: nn.ModuleDict,
    x: Tensor,
    mask: Tensor | None,
    tok_mask: Tensor | None,
    state: State | None,
) -> Tensor:
    x = layer["downscale"](x, mask=mask, state=state)
    return _mixed(layer["focal_block"], x, mask=tok_mask, state=state)


def _upscaled(layer: nn.ModuleDict, x: Tensor, mask: Tensor | None, state: State | None) -> Tensor:
    return layer["upscale"](_mixed(layer["focal_block"], x, mask=mask, state=state), mask=mask)


def _mixed(mixer: nn.Module, x: Tensor, *, mask: Tensor | None, state: State | None) -> Tensor:
    if state is None:  # which mixers with full context do not know
        return mixer(x, mask=mask)
    return mixer(x, mask=mask, state=state)


def _mixer(factory: Callable[[int], nn.Module], dim: int, causal: bool) -> nn.Module:
    """Mixer of a layer, checked for what it may see."""
    mixer = factory(dim)
    if getattr(mixer, "causal", False) != causal:
        raise ValueError(
            f"causal is {causal}, but {type(mixer).__name__} has "
            f"{'full context' if causal else 'none of what comes later'}; give both the same"
        )
    return mixer


def _once(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def _recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False)


class DownScale(LinearMap, nn.Module):
    """Join every ``factor`` frames into one by a linear map, then apply the activation.

    Parameters
    ----------
    input_dim, output_dim : channels.
    factor : frames joined, >= 1; 1 is a linear projection.
    activation : module on (B, output_dim, L).
    causal : join each ``factor``-th frame with those before it instead of those behind it; before
        the beginning these are copies of the first frame.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        factor: int,
        activation: nn.Module,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.factor = factor
        self.causal = causal
        self.context = LeftContext(factor - 1) if causal else None
        self.downscale = nn.Conv1d(input_dim, output_dim, factor, stride=factor)
        self.activation = activation

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Weights (output_dim, factor * input_dim) of the map of joined frames, and bias."""
        weight = self.downscale.weight.transpose(1, 2).reshape(self.output_dim, -1)
        return weight, self.downscale.bias

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """(B, N, input_dim) to (B, ceil(N / factor), output_dim), 0 outside ``mask[:, ::factor]``.

        The end of an item is padded with zeros to a multiple of ``factor``. The published code does
        so only for factors 1 and 2 and loses frames at 3
        (test_focalnet.py::test_downscale_keeps_the_last_frames).
        """
        x = zero_padding(x, mask=mask)
        if self.context is not None:
            size = -(-x.shape[1] // self.factor) * self.factor
            x = self.context(x, state=state)[:, :size]
        elif self.factor > 1:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        x = x.reshape(x.shape[0], -1, self.factor * self.input_dim)
        x = self.activation(self.map(x).transpose(1, 2)).transpose(1, 2)
        return zero_padding(x, mask=None if mask is None else mask[:, :: self.factor])


class UpScale(LinearMap, nn.Module):
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

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Weights (factor * output_dim, input_dim) of the map to ``factor`` frames, and bias."""
        weight = self.upscale.weight.permute(2, 1, 0).flatten(0, 1)
        return weight, self.upscale.bias.repeat(self.factor)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, L, input_dim) to (B, L * factor, output_dim), 0 at padded frames."""
        x = self.activation(x.transpose(1, 2)).transpose(1, 2)
        x = self.map(x)
        return zero_padding(x, mask=mask).reshape(x.shape[0], -1, self.output_dim)


class ChunkRefiner(nn.Module):
    """Feed-forward network over the frames of a chunk together, added to them ([2]_, refiner).

    So each frame sees the rest of its chunk, which has to be waited for anyway.

    Parameters
    ----------
    dim : channels.
    chunk_frames : frames of a chunk.
    """

    def __init__(self, dim: int, *, chunk_frames: int) -> None:
        super().__init__()
        self.dim = dim
        self.chunk_frames = chunk_frames
        self.in_proj = nn.Linear(chunk_frames * dim, chunk_frames * dim)
        self.out_proj = nn.Linear(chunk_frames * dim, chunk_frames * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, dim); a last chunk that is not complete is filled with zeros."""
        size = x.shape[1]
        chunks = F.pad(x, (0, 0, 0, -size % self.chunk_frames)).unflatten(
            1, (-1, self.chunk_frames)
        )
        refined = self.out_proj(F.gelu(self.in_proj(chunks.flatten(2))))
        return x + refined.view(x.shape[0], -1, self.dim)[:, :size]


def _check_layers(hidden_dims: Sequence[int], *, factors: Sequence[int], name: str) -> None:
    if len(hidden_dims) == 0 or len(hidden_dims) != len(factors):
        raise ValueError(
            f"hidden_dims and {name} need one entry per layer, "
            f"got {list(hidden_dims)} and {list(factors)}"
        )
    if min(factors) < 1:
        raise ValueError(f"{name} must be at least 1, got {list(factors)}")
