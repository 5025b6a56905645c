"""Vocos: the decoder that turns feats or qfeats (B, N, H) into a waveform (B, N * hop_length).

A ConvNeXt backbone works at the frame rate; a head predicts a magnitude and a phase for every frame
and an inverse STFT does all of the upsampling [1]_. Parameters have the names and shapes of the
published checkpoints; channels are last throughout. The causal form gives each frame's samples at
once: the end of its inverse FFT, without window and overlap [2]_.

References
----------
.. [1] Siuzdak, 2023, "Vocos", arXiv:2306.00814.
.. [2] lucadellalib/focalcodec, v0.0.2, its class Vocos with ``causal``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.convnext import ConvNeXt
from focalcodec.masking import check_frames, zero_padding
from focalcodec.streaming import State

MAX_MAGNITUDE = 100.0


class Vocos(nn.Module):
    """ConvNeXt backbone and inverse STFT head; the defaults are the paper's (appendix D.1).

    Parameters
    ----------
    input_dim : channels of feats.
    num_layers : ConvNeXt blocks.
    dim : channels inside.
    ffn_dim : hidden channels of each block.
    kernel_size : frames, odd.
    n_fft : FFT size and window length, samples, even.
    hop_length : samples per frame; ``n_fft - hop_length`` must be even and positive.
    layerscale_init : initial scale of each block's branch; None for ``1 / num_layers``.
    causal : convolutions reach back only, and each frame gives its samples without overlap.

    Raises
    ------
    ValueError : if a size does not fit.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        *,
        num_layers: int = 8,
        dim: int = 512,
        ffn_dim: int = 1536,
        kernel_size: int = 7,
        n_fft: int = 1024,
        hop_length: int = 320,
        layerscale_init: float | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.num_layers = num_layers
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.kernel_size = kernel_size
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.layerscale_init = layerscale_init
        self.causal = causal
        self.backbone = ConvNeXt(
            input_dim,
            num_layers=num_layers,
            dim=dim,
            ffn_dim=ffn_dim,
            kernel_size=kernel_size,
            layerscale_init=layerscale_init,
            causal=causal,
        )
        head = CausalISTFTHead if causal else ISTFTHead
        self.head = head(dim, n_fft=n_fft, hop_length=hop_length)

    def forward(
        self, feats: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Decode.

        Parameters
        ----------
        feats : (B, N, input_dim) feats or qfeats.
        mask : (B, N) bool, True for real frames; None for all.
        state : where causal streams go on.

        Returns
        -------
        sig : (B, N * hop_length) float32. With ``mask``, an item's samples are those that it has
        alone, and samples past its last real frame are 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(feats, dim=self.input_dim, mask=mask, name="feats")
        return self.head(self.backbone(feats, mask=mask, state=state), mask=mask)


class ISTFTHead(nn.Module):
    """Log-magnitude and phase of every frame by one linear map, then the inverse STFT.

    Computed in float32 under autocast too: half precision has neither the FFT nor the phase.

    Parameters
    ----------
    dim : channels of the input.
    n_fft, hop_length : as in `Vocos`.

    Raises
    ------
    ValueError : if ``n_fft`` is odd or not above ``hop_length``, or their difference is odd.
    """

    def __init__(self, dim: int, *, n_fft: int, hop_length: int) -> None:
        super().__init__()
        if n_fft % 2 or not 0 < hop_length < n_fft or (n_fft - hop_length) % 2:
            raise ValueError(
                "n_fft must be even, larger than hop_length and differ from it by an even number "
                "(as many samples are cut on both sides), "
                f"got n_fft={n_fft}, hop_length={hop_length}"
            )
        self.dim = dim
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.proj = nn.Linear(dim, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, dim) to (B, N * hop_length); ``mask`` as in `istft`."""
        with torch.autocast(x.device.type, enabled=False):
            spec = self._spec(x)
            window = self.window.to(spec.real.dtype)
            return istft(spec, window=window, hop_length=self.hop_length, mask=mask)

    def _spec(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, n_fft / 2 + 1) complex."""
        x = self.proj(x.to(self.proj.weight.dtype))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        log_magnitude, phase = x.chunk(2, dim=-1)
        # The published code clamps behind exp, where an overflow has a gradient of NaN.
        magnitude = log_magnitude.clamp(max=math.log(MAX_MAGNITUDE)).exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())


class CausalISTFTHead(ISTFTHead):
    """Log-magnitude and phase as in `ISTFTHead`; of each inverse FFT its last samples are kept."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, dim) to (B, N * hop_length), 0 where ``mask`` (B, N) is False."""
        with torch.autocast(x.device.type, enabled=False):
            frames = torch.fft.irfft(self._spec(x), n=self.n_fft)[..., -self.hop_length :]
            return zero_padding(frames, mask=mask).flatten(1)


def istft(spec: Tensor, *, window: Tensor, hop_length: int, mask: Tensor | None = None) -> Tensor:
    """Inverse STFT whose frames are centred on their hops, so that N frames give N hops.

    Windowed inverse FFTs are overlap-added and divided by the overlap-added squared window; of both
    ends ``(n_fft - hop_length) / 2`` samples are cut.

    Parameters
    ----------
    spec : (B, N, n_fft / 2 + 1) complex.
    window : (n_fft,) synthesis window, non-zero except at its first sample.
    hop_length : samples, below ``n_fft`` by an even number.
    mask : (B, N) bool, True for real frames; None for all. Other frames contribute nothing, neither
        to the signal nor to the sum of windows, and their samples are 0.

    Returns
    -------
    (B, N * hop_length) real.
    """
    num_frames, n_fft = spec.shape[1], window.shape[0]
    frames = torch.fft.irfft(spec, n=n_fft) * window
    weights = window.square().expand(1, num_frames, n_fft)
    if mask is not None:
        frames = zero_padding(frames, mask=mask)
        weights = zero_padding(weights, mask=mask)
    start = (n_fft - hop_length) // 2
    stop = start + num_frames * hop_length
    sig = _overlap_add(frames, hop_length=hop_length)[:, start:stop]
    envelope = _overlap_add(weights, hop_length=hop_length)[:, start:stop]
    if mask is None:
        return sig / envelope
    padding = ~mask.repeat_interleave(hop_length, dim=1)
    return (sig / envelope.masked_fill(padding, 1)).masked_fill(padding, 0)


def _overlap_add(frames: Tensor, *, hop_length: int) -> Tensor:
    """(B, N, n_fft) to (B, T), T at least (N - 1) * hop_length + n_fft; zeros behind that."""
    num_hops = -(-frames.shape[2] // hop_length)
    frames = F.pad(frames, (0, num_hops * hop_length - frames.shape[2]))
    hops = frames.unflatten(2, (num_hops, hop_length))
    # Slices instead of F.fold: no length is fixed when the model is exported.
    shifted = [F.pad(hops[:, :, i], (0, 0, i, num_hops - 1 - i)) for i in range(num_hops)]
    return torch.stack(shifted).sum(dim=0).flatten(1)
