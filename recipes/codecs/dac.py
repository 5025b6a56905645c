"""Descript Audio Codec (Kumar et al., 2023, arXiv:2306.06546) through transformers.

Interface read from and run with transformers 5.23, ``models/dac/modeling_dac.py``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.codecs.transformers_codec import TransformersCodec


class DAC(TransformersCodec):
    """Residual codebooks of few dimensions over a convolutional autoencoder.

    Parameters
    ----------
    checkpoint : hub id such as descript/dac_16khz, or a folder of the same files.
    num_codebooks : the first of those in the checkpoint; 2 are 1 kbit/s at 50 Hz.
    name : to print.

    Raises
    ------
    FileNotFoundError : if files are missing.
    ValueError : if the checkpoint is of another model or has fewer codebooks.
    """

    architecture, name = "DacModel", "DAC"

    def _choices(self) -> range:
        return range(1, self.model.config.n_codebooks + 1)

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        # Strided convolutions would drop the last samples; the package's own preprocessing pads
        # to whole frames too.
        sig = F.pad(sig, (0, -sig.shape[1] % self.samples_per_tok))
        codes = self.model.encode(sig[:, None], n_quantizers=self.num_codebooks).audio_codes
        return codes.transpose(1, 2)  # (1, L, K)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self.model.decode(audio_codes=toks.transpose(1, 2)).audio_values

    def embeddings(self) -> Tensor:
        """(K, codebook_size, 8) code vectors, before each codebook's projection."""
        books = self.model.quantizer.quantizers[: self.num_codebooks]
        return torch.stack([book.codebook.weight for book in books])
