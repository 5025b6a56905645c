"""Compressor and decompressor of the baseline WavLM6-KM: nothing, and a Conformer.

The baseline quantizes features as they are (`focalcodec.kmeans`), so its compressor is the
identity; its decompressor, called dequantizer [1]_, gives continuous features back.

References
----------
.. [1] Wang et al., 2024, arXiv:2312.09747, as re-implemented in arXiv:2502.04465, appendix C.
.. [2] Gulati et al., 2020, "Conformer", arXiv:2005.08100.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from focalcodec.masking import check_frames, zero_padding
from focalcodec.mixers import ConformerBlock


class IdentityCompressor(nn.Module):
    """Feats as lats: nothing is compressed.

    Parameters
    ----------
    dim : channels of feats and of lats.

    Attributes
    ----------
    input_dim, output_dim, downscale_factors : as in `focalcodec.focalnet.Compressor`.
    out_proj : the projection in front of the quantizer, here none.
    """

    downscale_factors = (1,)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.input_dim = dim
        self.output_dim = dim
        self.out_proj = nn.Identity()

    def forward(self, feats: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Give (B, N, dim) back, padded frames as 0.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(feats, dim=self.dim, mask=mask, name="feats")
        return zero_padding(feats, mask=mask)


class ConformerDecompressor(nn.Module):
    """Codes to qfeats at the same rate: a projection, Conformer layers, a projection.

    The layers are those of `focalcodec.mixers`, with relative positions and SiLU as in [2]_. The
    author's release (lucadellalib/discrete-wavlm-codec, ``hubconf.py``) has SpeechBrain's Conformer
    encoder with absolute positions, GELU and one more LayerNorm at its end; its weights do not fit.

    Parameters
    ----------
    input_dim : channels of codes.
    output_dim : channels of qfeats.
    dim : channels of the layers.
    num_layers : Conformer layers.
    num_heads : attention heads, a divisor of ``dim``.
    ffn_dim : hidden channels of the feed-forward parts.
    kernel_size : frames of the convolutions, odd; 31 in SpeechBrain, the paper gives none.
    dropout : probability behind the first projection and in the layers.

    Attributes
    ----------
    upscale_factors : as in `focalcodec.focalnet.Decompressor`.
    recomputes : while training, keep only what enters each layer, and compute the rest again in the
        backward pass: less memory for more time, the same gradients. False at first.

    Raises
    ------
    ValueError : as `focalcodec.mixers.ConformerBlock`.
    """

    upscale_factors = (1,)

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 4,
        ffn_dim: int = 512,
        kernel_size: int = 31,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.in_proj = nn.Linear(input_dim, dim)
        self.layers = nn.ModuleList(
            ConformerBlock(
                dim,
                num_heads=num_heads,
                kernel_size=kernel_size,
                ffn_ratio=ffn_dim / dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.out_proj = nn.Linear(dim, output_dim)
        self.recomputes = False

    def forward(self, codes: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Decompress.

        Parameters
        ----------
        codes : (B, L, input_dim).
        mask : (B, L) bool, True for real frames; None for all.

        Returns
        -------
        (B, L, output_dim), 0 at padded frames.

        Raises
        ------
        ValueError : if a shape or the type of ``mask`` does not fit.
        """
        check_frames(codes, dim=self.input_dim, mask=mask, name="codes")
        x = self.in_proj(zero_padding(codes, mask=mask))
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            if self.recomputes and self.training:
                x = checkpoint(layer, x, mask=mask, use_reentrant=False)
            else:
                x = layer(x, mask=mask)
        return zero_padding(self.out_proj(x), mask=mask)
