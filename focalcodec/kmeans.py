"""Quantization to the nearest of learnt centroids: the semantic baseline WavLM6-KM [1]_.

Pipeline position: compressor (here the identity) -> lats (B, L, D) -> **quantizer** -> toks (B, L),
codes (B, L, D) -> decompressor (the baseline's dequantizer, `focalcodec.dequantizer`). The
centroids are found by k-means (``recipes/train_kmeans.py``), never by a gradient.

References
----------
.. [1] Wang et al., 2024, arXiv:2312.09747, as re-implemented in arXiv:2502.04465, appendix C, and
       in lucadellalib/discrete-wavlm-codec.
"""

import torch
from torch import Tensor, nn

from focalcodec.quantizers import Quantized, Quantizer

_BLOCK_ENTRIES = 2**22  # of frames x centroids scores at a time: 16 MiB in float32


class KMeansQuantizer(Quantizer):
    """Nearest centroid by Euclidean distance: a token is its number, a code the centroid itself.

    Centroids are part of the weights. Until some are loaded they are random, as any module's.

    Parameters
    ----------
    codebook_size : number of centroids, at least 2; 512 in the paper.
    code_dim : entries of a centroid, those of the encoder's features.

    Attributes
    ----------
    centroids : (codebook_size, code_dim) parameter without gradient.

    Raises
    ------
    ValueError : if a size is no whole number or too small.
    """

    def __init__(self, codebook_size: int = 512, code_dim: int = 1024) -> None:
        super().__init__()
        for name, size, least in (("codebook_size", codebook_size, 2), ("code_dim", code_dim, 1)):
            if not isinstance(size, int) or isinstance(size, bool) or size < least:
                raise ValueError(f"{name} is a whole number of at least {least}, got {size!r}")
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        # A parameter, so that it counts as one of the codec's.
        self.centroids = nn.Parameter(torch.randn(codebook_size, code_dim), requires_grad=False)

    def lats_to_codes(self, lats: Tensor) -> Tensor:
        """Nearest centroids; no gradient. A latent of NaN gives that of token 0.

        Parameters
        ----------
        lats : (..., D) floating point.

        Returns
        -------
        (..., D) codes, rows of ``centroids``.

        Raises
        ------
        ValueError : if the last axis is not D or ``lats`` is not floating point.
        """
        return self._quantize(self._checked_vectors(lats, name="lats")).codes

    def lats_to_toks(self, lats: Tensor) -> Tensor:
        """Tokens (...) int64 of latents (..., D)."""
        return self._nearest(self._checked_vectors(lats, name="lats"))

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens of codes: of equally near centroids the first.

        Parameters
        ----------
        codes : (..., D) floating point; what is no centroid counts as the nearest one.

        Returns
        -------
        (...) int64 in [0, codebook_size).

        Raises
        ------
        ValueError : if the last axis is not D or ``codes`` is not floating point.
        """
        return self._nearest(self._checked_vectors(codes, name="codes"))

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Codes of tokens.

        Parameters
        ----------
        toks : (...) of any integer dtype, in [0, codebook_size).

        Returns
        -------
        (..., D) float32 codes on the device of the centroids.

        Raises
        ------
        ValueError : if ``toks`` is not of an integer dtype or holds a token out of range.
        """
        return self.centroids.detach()[self._checked_toks(toks)].float()

    def extra_repr(self) -> str:
        """Arguments shown by ``print(module)``."""
        return f"codebook_size={self.codebook_size}, code_dim={self.code_dim}"

    def _quantize(self, lats: Tensor) -> Quantized:
        toks = self._nearest(lats)
        return Quantized(toks, self.centroids.detach()[toks].to(lats.dtype))

    def _project(self, lats: Tensor) -> Tensor:
        return lats

    @torch.no_grad()
    def _nearest(self, lats: Tensor) -> Tensor:
        """Tokens (...) of the nearest centroids, in blocks of bounded memory.

        |x - c|^2 differs from |c|^2 - 2 x.c by what all centroids share. Both are taken relative to
        the centroids' mean: WavLM's features lie far from 0 in a few channels, whose squares would
        take the digits that tell centroids apart.
        """
        centroids = self.centroids.to(lats.dtype)
        mean = centroids.mean(dim=0)
        centroids = centroids - mean
        with torch.autocast(lats.device.type, enabled=False):
            half_norms = centroids.square().sum(dim=-1) / 2
            rows = lats.detach().reshape(-1, self.code_dim)
            blocks = rows.split(max(1, _BLOCK_ENTRIES // self.codebook_size))
            toks = [(half_norms - (x - mean) @ centroids.T).argmin(dim=-1) for x in blocks]
        return torch.cat(toks).view(lats.shape[:-1])
