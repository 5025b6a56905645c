"""Tokens of one voice, or of each, from those of a noisy or mixed signal: a Conformer encoder.

References
----------
.. [1] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.2.
.. [2] Gulati et al., 2020, "Conformer", arXiv:2005.08100.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.mixers import ConformerBlock
from recipes.downstream.embedding import (
    FeatureEmbedding,
    TokenEmbedding,
    codebook_sizes,
    tok_mask,
)


class GeluConformerBlock(ConformerBlock):
    """Conformer layer with GELU in the place of SiLU, as in the author's downstream models."""

    activation = nn.GELU


class Separator(nn.Module):
    """Conformer on tokens or continuous features, with a linear head per codebook and source [1]_.

    Enhancement is separation with one source. The layers [2]_ have relative positions, and each
    ends in a LayerNorm, so that there is none behind the last.

    Parameters
    ----------
    codebooks : (K, codebook_size, H) vectors of the codec's tokens, where the embedding starts.
    num_sources : S.
    num_layers, num_heads, ffn_dim : of the Conformer.
    dim : channels of the layers.
    kernel_size : frames of the convolutions, odd; 31 in SpeechBrain, the paper gives none.
    dropout : probability behind the embedding and in the layers.
    feats_dim : channels of continuous features to read; None to read tokens.
    frames_per_tok : frames of features of one token.

    Attributes
    ----------
    num_codebooks, codebook_size : K, and tokens are in [0, codebook_size).

    Raises
    ------
    ValueError : if a number is below 1, there are frames per token but no features, or
        ``codebooks`` have another shape; and as `focalcodec.mixers.ConformerBlock`.
    """

    def __init__(
        self,
        codebooks: Tensor,
        *,
        num_sources: int = 1,
        num_layers: int = 6,
        dim: int = 512,
        num_heads: int = 4,
        ffn_dim: int = 2048,
        kernel_size: int = 31,
        dropout: float = 0.1,
        feats_dim: int | None = None,
        frames_per_tok: int = 1,
    ) -> None:
        super().__init__()
        if min(num_sources, num_layers) < 1:
            raise ValueError(
                f"num_sources and num_layers must be at least 1, got {num_sources} and {num_layers}"
            )
        if feats_dim is None and frames_per_tok != 1:
            raise ValueError(
                f"frames_per_tok is {frames_per_tok}, but tokens are read; give feats_dim to read "
                "features, or leave frames_per_tok at 1"
            )
        self.num_codebooks, self.codebook_size = codebook_sizes(codebooks)
        self.num_sources = num_sources
        self.frames_per_tok = frames_per_tok
        self.dropout = dropout
        if feats_dim is None:
            self.embedding = TokenEmbedding(codebooks, dim=dim)
        else:
            self.embedding = FeatureEmbedding(feats_dim, dim=dim, frames_per_tok=frames_per_tok)
        self.layers = nn.ModuleList(
            GeluConformerBlock(
                dim,
                num_heads=num_heads,
                kernel_size=kernel_size,
                ffn_ratio=ffn_dim / dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.heads = nn.Linear(dim, num_sources * self.num_codebooks * self.codebook_size)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Logits of the tokens of every source.

        Parameters
        ----------
        x : (B, L, K) int64 tokens, or (B, N, feats_dim) features; padding may hold anything.
        mask : (B, L) bool, or (B, N) of the features' frames, True for real ones; None for all.

        Returns
        -------
        (B, S, L, K, codebook_size), L = ceil(N / frames_per_tok) of features; finite at padding.

        Raises
        ------
        ValueError : if a shape or type does not fit.
        IndexError : if a real token is out of range.
        """
        x = self.embedding(x, mask=mask)
        x = F.dropout(x, self.dropout, self.training)
        mask = tok_mask(mask, frames_per_tok=self.frames_per_tok)
        for layer in self.layers:
            x = layer(x, mask=mask)
        sizes = (self.num_sources, self.num_codebooks, self.codebook_size)
        return self.heads(x).unflatten(2, sizes).transpose(1, 2)
