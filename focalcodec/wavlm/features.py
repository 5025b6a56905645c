"""Strided convolutions in front of the Transformer, from samples to frames."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.fastconv import conv_in_pairs, conv_side_by_side, is_plain_cpu
from focalcodec.masking import lengths_to_mask
from focalcodec.streaming import State
from focalcodec.wavlm.blocks import blocks


class FeatureExtractor(nn.Module):
    """Strided convolutions, (B, T) samples to (B, N, C) frames."""

    def __init__(
        self, hidden_dims: Sequence[int], kernel_sizes: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.hop_length = 1
        self.receptive_field = 1
        self.layers = nn.ModuleList()
        input_dim = 1
        for hidden_dim, kernel_size, stride in zip(hidden_dims, kernel_sizes, strides, strict=True):
            self.layers.append(_ConvLayer(input_dim, hidden_dim, kernel_size, stride))
            self.receptive_field += (kernel_size - 1) * self.hop_length
            self.hop_length *= stride
            input_dim = hidden_dim
        # The first layer's result is the largest tensor by far.
        self.floats_per_frame = hidden_dims[0] * self.hop_length // strides[0]

    def forward(
        self, sig: Tensor, *, lengths: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Frames of (B, T) waveforms; ``lengths`` (B,) in samples, None for all of them whole.

        ``state`` only keeps what is made of the weights.
        """
        if lengths is not None:
            sig = sig.masked_fill(~lengths_to_mask(lengths, sig.shape[1]), 0)
        shape = (sig.shape[0], self.num_frames(sig.shape[1]))
        kernels = [None] * len(self.layers)
        if is_plain_cpu(sig):
            kernels = self._kernels() if state is None else state.prepared(self, self._kernels)
        frames = []
        for items, steps in blocks(
            *shape, floats_per_step=self.floats_per_frame, device=sig.device
        ):
            x = sig[items, steps.start * self.hop_length :]
            x = x[:, : self.num_samples(steps.stop - steps.start)]
            # Only the first frame of an item can reach beyond the item's end.
            reaches_end = lengths is not None and steps.start == 0
            x = self._stack(x, kernels=kernels, lengths=lengths[items] if reaches_end else None)
            frames.append(x.flatten(0, 1))
        return torch.cat(frames).unflatten(0, shape)

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of a number of samples, at least one."""
        frames = (num_samples - self.receptive_field) // self.hop_length + 1
        return frames.clamp(min=1) if isinstance(frames, Tensor) else max(frames, 1)

    def num_samples(self, num_frames: int | Tensor) -> int | Tensor:
        """Fewest samples that fill a number of frames."""
        return (num_frames - 1) * self.hop_length + self.receptive_field

    def _kernels(self) -> list[Tensor | None]:
        return [layer.kernel() for layer in self.layers]

    def _stack(
        self, sig: Tensor, *, kernels: Sequence[Tensor | None], lengths: Tensor | None
    ) -> Tensor:
        x = sig[:, :, None]
        for layer, kernel in zip(self.layers, kernels, strict=True):
            x = layer(x, kernel=kernel)
            if lengths is not None:
                lengths = layer.num_frames(lengths)
                x = x.masked_fill(~lengths_to_mask(lengths, x.shape[1])[:, :, None], 0)
        return x


class _ConvLayer(nn.Module):
    """Convolution without padding, LayerNorm over channels, GELU: (B, T, C) to (B, N, C').

    Channels stay the last axis: LayerNorm needs them there, and the convolution is as fast on that
    layout, so that nothing is ever transposed in memory.
    """

    def __init__(self, input_dim: int, output_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.conv = nn.Conv1d(input_dim, output_dim, kernel_size, stride=stride, bias=False)
        self.norm = nn.LayerNorm(output_dim)

    def kernel(self) -> Tensor | None:
        """Weights (.., C, C') for a way of `fastconv`; None if there is none for this layer."""
        taps = self.conv.weight.permute(2, 0, 1)
        if (self.kernel_size, self.stride) == (3, 2):
            return torch.cat([taps, taps[:1] + taps[2:]]).transpose(1, 2)
        if self.kernel_size == self.stride:
            return taps.transpose(1, 2).contiguous()
        return None

    def forward(self, x: Tensor, *, kernel: Tensor | None) -> Tensor:
        # Anything shorter than the kernel is extended by zeros and gives one frame.
        if x.shape[1] < self.kernel_size:
            x = F.pad(x, (0, 0, 0, self.kernel_size - x.shape[1]))
        if kernel is not None:
            way = conv_side_by_side if self.kernel_size == self.stride else conv_in_pairs
            x = way(x, kernel)
        else:
            # A 2-D convolution over one row: the only one PyTorch has for channels-last memory.
            x = x.transpose(1, 2)[:, :, None]  # (B, C, 1, T)
            x = F.conv2d(x, self.conv.weight[:, :, None], stride=(1, self.stride))
            x = x.squeeze(2).transpose(1, 2)  # (B, N, C')
        return F.gelu(self.norm(x))

    def num_frames(self, lengths: Tensor) -> Tensor:
        return ((lengths - self.kernel_size) // self.stride + 1).clamp(min=1)
