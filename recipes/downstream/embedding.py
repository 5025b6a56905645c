"""What the models of the downstream tasks read: tokens or continuous features as their own vectors.

References
----------
.. [1] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.2.
.. [2] Chen et al., 2022, "WavLM", arXiv:2110.13900: layers weighted by a learned softmax.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.masking import check_frames, check_mask, zero_padding


class TokenEmbedding(nn.Module):
    """Trainable vectors that start as the codec's, weighted over the codebooks, and a linear map.

    The vectors of a step's K tokens are averaged with weights that are learned, a softmax [2]_ that
    starts uniform, as the paper does for codecs of several codebooks [1]_. The map gives every
    codec the same width, whatever the size of its codes.

    Parameters
    ----------
    codebooks : (K, codebook_size, H) vectors of all tokens, as ``embeddings`` of
        `recipes.codecs.codec.Codec` gives them. They are copied.
    dim : channels of the result.

    Attributes
    ----------
    num_codebooks, codebook_size : K, and tokens are in [0, codebook_size).

    Raises
    ------
    ValueError : if ``codebooks`` have another shape or type.
    """

    def __init__(self, codebooks: Tensor, *, dim: int) -> None:
        super().__init__()
        self.num_codebooks, self.codebook_size = codebook_sizes(codebooks)
        self.dim = dim
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(codebook.detach().clone(), freeze=False)
            for codebook in codebooks
        )
        self.scores = nn.Parameter(codebooks.new_zeros(self.num_codebooks))
        self.proj = nn.Linear(codebooks.shape[2], dim)

    @property
    def codebook_weights(self) -> Tensor:
        """(K,) share of each codebook in the embedding; they sum to 1."""
        return self.scores.softmax(dim=0)

    def forward(self, toks: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Embed.

        Parameters
        ----------
        toks : (B, L, K) int64 in [0, codebook_size); padding may hold anything.
        mask : (B, L) bool, True for real tokens; None for all.

        Returns
        -------
        (B, L, dim), 0 where ``mask`` is False.

        Raises
        ------
        ValueError : if a shape or type does not fit.
        IndexError : if a real token is out of range.
        """
        check_toks(toks, num_codebooks=self.num_codebooks)
        check_mask(mask, like=toks, name="toks")
        toks = zero_padding(toks, mask=mask)
        vectors = [table(toks[..., k]) for k, table in enumerate(self.tables)]
        weighted = torch.stack(vectors, dim=-1) @ self.codebook_weights  # (B, L, H)
        return zero_padding(self.proj(weighted), mask=mask)


class FeatureEmbedding(nn.Module):
    """Layer-normed continuous features at the rate of tokens, and a linear map.

    The frames of one token are put side by side, so that none of what they hold is lost.

    Parameters
    ----------
    feats_dim : channels of features.
    dim : channels of the result.
    frames_per_tok : frames of one token.

    Raises
    ------
    ValueError : if ``frames_per_tok`` is below 1.
    """

    def __init__(self, feats_dim: int, *, dim: int, frames_per_tok: int = 1) -> None:
        super().__init__()
        if frames_per_tok < 1:
            raise ValueError(f"frames_per_tok must be at least 1, got {frames_per_tok}")
        self.feats_dim = feats_dim
        self.dim = dim
        self.frames_per_tok = frames_per_tok
        self.norm = nn.LayerNorm(feats_dim)
        self.proj = nn.Linear(frames_per_tok * feats_dim, dim)

    def forward(self, feats: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Embed.

        Parameters
        ----------
        feats : (B, N, feats_dim); padding may hold anything.
        mask : (B, N) bool, True for real frames; None for all.

        Returns
        -------
        (B, L, dim) with L = ceil(N / frames_per_tok), 0 where a token has no real frame. Frames
        that the last token lacks are 0.

        Raises
        ------
        ValueError : if a shape or type does not fit.
        """
        check_frames(feats, dim=self.feats_dim, mask=mask, name="feats")
        x = zero_padding(self.norm(zero_padding(feats, mask=mask)), mask=mask)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.frames_per_tok))
        x = x.reshape(x.shape[0], -1, self.frames_per_tok * self.feats_dim)  # (B, L, frames H)
        return zero_padding(self.proj(x), mask=tok_mask(mask, frames_per_tok=self.frames_per_tok))


def tok_mask(mask: Tensor | None, *, frames_per_tok: int) -> Tensor | None:
    """(B, ceil(N / frames_per_tok)) of (B, N): a token is real if its first frame is."""
    return None if mask is None else mask[:, ::frames_per_tok]


def codebook_sizes(codebooks: Tensor) -> tuple[int, int]:
    """Give the number of codebooks and the size of each.

    Raises
    ------
    ValueError : if ``codebooks`` are not (K, codebook_size, H) of floating point.
    """
    if codebooks.ndim != 3 or codebooks.numel() == 0 or not codebooks.is_floating_point():
        raise ValueError(
            "codebooks must be (K, codebook_size, H) float, as codec.embeddings() gives them, "
            f"got {codebooks.dtype} of shape {tuple(codebooks.shape)}"
        )
    return codebooks.shape[0], codebooks.shape[1]


def check_toks(toks: Tensor, *, num_codebooks: int) -> None:
    """Refuse what is no batch of tokens; their range is checked where they are looked up.

    Raises
    ------
    ValueError : if ``toks`` are not (B, L, num_codebooks) int64.
    """
    if toks.ndim != 3 or toks.shape[2] != num_codebooks or toks.dtype != torch.int64:
        raise ValueError(
            f"toks must be (B, L, {num_codebooks}) int64, one for each codebook, "
            f"got {toks.dtype} of shape {tuple(toks.shape)}"
        )
