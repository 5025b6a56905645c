"""WaveNeXt: the decoder of the causal codec, feats or qfeats (B, N, H) to a waveform.

Vocos' backbone, and in the place of the inverse STFT one linear map from a frame to its samples
[1]_. Parameters have the names and shapes of the published causal checkpoints [2]_.

References
----------
.. [1] Okamoto et al., 2023, "WaveNeXt", ASRU, doi:10.1109/ASRU57964.2023.10389765.
.. [2] Della Libera et al., 2025, "FocalCodec-Stream", arXiv:2509.16195.
"""

from torch import Tensor, nn

from focalcodec.convnext import ConvNeXt
from focalcodec.masking import check_frames, zero_padding
from focalcodec.streaming import State

FRAME_RATE = 50  # Hz, of the features that the published decoders are made for


class WaveNeXt(nn.Module):
    """ConvNeXt backbone and linear head; the defaults are those of the published causal codecs.

    Parameters
    ----------
    input_dim : channels of feats.
    num_layers : ConvNeXt blocks.
    dim : channels inside.
    ffn_dim : hidden channels of each block.
    kernel_size : frames, odd.
    hop_length : samples per frame.
    layerscale_init : initial scale of each block's branch; None for ``1 / num_layers``.
    causal : convolutions reach back only, before the beginning to zeros.
    sample_rate : Hz, of the output; None for ``hop_length`` at 50 frames per second.

    Raises
    ------
    ValueError : if a size does not fit.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        *,
        num_layers: int = 8,
        dim: int = 1024,
        ffn_dim: int = 2048,
        kernel_size: int = 7,
        hop_length: int = 480,
        layerscale_init: float | None = None,
        causal: bool = False,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.num_layers = num_layers
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.kernel_size = kernel_size
        self.hop_length = hop_length
        self.layerscale_init = layerscale_init
        self.causal = causal
        self.sample_rate = FRAME_RATE * hop_length if sample_rate is None else sample_rate
        self.backbone = ConvNeXt(
            input_dim,
            num_layers=num_layers,
            dim=dim,
            ffn_dim=ffn_dim,
            kernel_size=kernel_size,
            layerscale_init=layerscale_init,
            causal=causal,
            fill="zeros",
        )
        self.head = WaveNeXtHead(dim, hop_length=hop_length)

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
        sig : (B, N * hop_length) in [-1, 1]. With ``mask``, an item's samples are those that it has
        alone, and samples past its last real frame are 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(feats, dim=self.input_dim, mask=mask, name="feats")
        return self.head(self.backbone(feats, mask=mask, state=state), mask=mask)


class WaveNeXtHead(nn.Module):
    """The samples of every frame by one linear map, clamped to [-1, 1].

    Parameters
    ----------
    dim : channels of the input.
    hop_length : samples per frame.
    """

    def __init__(self, dim: int, *, hop_length: int) -> None:
        super().__init__()
        self.dim = dim
        self.hop_length = hop_length
        self.proj = nn.Linear(dim, hop_length)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N, dim) to (B, N * hop_length), 0 where ``mask`` (B, N) is False."""
        return zero_padding(self.proj(x).clamp(-1, 1), mask=mask).flatten(1)
