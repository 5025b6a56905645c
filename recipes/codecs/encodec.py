"""EnCodec (Défossez et al., 2023, arXiv:2210.13438) through transformers.

Interface read from and run with transformers 5.23, ``models/encodec/modeling_encodec.py``.
"""

from os import PathLike

import torch
from torch import Tensor

from recipes.codecs.transformers_codec import TransformersCodec


class EnCodec(TransformersCodec):
    """Residual codebooks over a convolutional autoencoder, mono.

    Parameters
    ----------
    checkpoint : hub id such as facebook/encodec_24khz, or a folder of the same files.
    num_codebooks : one that belongs to a bandwidth of the checkpoint; 2 are 1.5 kbit/s.
    name : to print.

    Raises
    ------
    FileNotFoundError : if files are missing.
    ValueError : if the checkpoint is of another model, is stereo or scales its input (its scales
        are sent beside the tokens, which a token rate would not count), or has no such bandwidth.
    """

    architecture, name = "EncodecModel", "EnCodec"

    def __init__(
        self, *, checkpoint: str | PathLike[str], num_codebooks: int, name: str | None = None
    ) -> None:
        super().__init__(checkpoint=checkpoint, num_codebooks=num_codebooks, name=name)
        config = self.model.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length is not None:
            raise ValueError(
                f"{checkpoint} is stereo, scales its input or cuts it into chunks; give a mono "
                "checkpoint without scales, such as facebook/encodec_24khz"
            )

    def _choices(self) -> list[int]:
        return sorted(self._bandwidths())

    def _bandwidths(self) -> dict[int, float]:
        """Bandwidth of every number of codebooks, in kbit/s."""
        quantizer = self.model.quantizer
        return {
            quantizer.get_num_quantizers_for_bandwidth(bandwidth): bandwidth
            for bandwidth in self.model.config.target_bandwidths
        }

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        bandwidth = self._bandwidths()[self.num_codebooks]
        codes = self.model.encode(sig[:, None], bandwidth=bandwidth).audio_codes  # (1, B, K, L)
        return codes[0].transpose(1, 2)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self.model.decode(toks.transpose(1, 2)[None], [None]).audio_values[:, 0]

    def embeddings(self) -> Tensor:
        """(K, codebook_size, 128) code vectors; the decoder takes their sum."""
        layers = self.model.quantizer.layers[: self.num_codebooks]
        return torch.stack([layer.codebook.embed for layer in layers])
