"""Mimi (Défossez et al., 2024, arXiv:2410.00037) through transformers.

Interface read from and run with transformers 5.23, ``models/mimi/modeling_mimi.py``.
"""

import torch
from torch import Tensor

from recipes.codecs.transformers_codec import TransformersCodec


class Mimi(TransformersCodec):
    """One semantic codebook, then residual acoustic ones beside it.

    Parameters
    ----------
    checkpoint : hub id such as kyutai/mimi, or a folder of the same files.
    num_codebooks : the first of those in the checkpoint, the semantic one among them; 5 are
        0.69 kbit/s at 12.5 Hz.
    name : to print.

    Raises
    ------
    FileNotFoundError : if files are missing.
    ValueError : if the checkpoint is of another model or has fewer codebooks.
    """

    architecture, name = "MimiModel", "Mimi"

    def _choices(self) -> range:
        config = self.model.config
        return range(config.num_semantic_quantizers, config.num_quantizers + 1)

    def _token_rate(self) -> float:
        return float(self.model.config.frame_rate)

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        codes = self.model.encode(sig[:, None], num_quantizers=self.num_codebooks).audio_codes
        return codes.transpose(1, 2)  # (1, L, K)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self.model.decode(toks.transpose(1, 2)).audio_values[:, 0]

    def embeddings(self) -> Tensor:
        """(K, codebook_size, 256) code vectors, before the projections of the two groups."""
        quantizer = self.model.quantizer
        books = [
            layer.codebook
            for group in ("semantic", "acoustic")
            for layer in getattr(quantizer, f"{group}_residual_vector_quantizer").layers
        ][: self.num_codebooks]
        # Not their property `embed`, which keeps what it has computed on its first device.
        usage = [book.cluster_usage.clamp(min=book.epsilon)[:, None] for book in books]
        return torch.stack([book.embed_sum / n for book, n in zip(books, usage, strict=True)])
