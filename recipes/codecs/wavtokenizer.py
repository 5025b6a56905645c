"""WavTokenizer (Ji et al., 2024, arXiv:2408.16532) through the package ``wavtokenizer``.

The authors' repository (github.com/jishengpeng/WavTokenizer) is no package; the mirror that the
paper's author made of it is one (github.com/lucadellalib/WavTokenizer). There is no wheel:
interface read in the mirror's ``wavtokenizer/decoder/pretrained.py``,
``decoder/feature_extractors.py`` and ``encoder/quantization/vq.py``, not run.
"""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from recipes.codecs.codec import Codec
from recipes.codecs.sources import find_files, import_package, model_id

_INSTALL = "pip install git+https://github.com/lucadellalib/WavTokenizer.git@main"


class WavTokenizer(Codec):
    """One large codebook; its decoder takes the code vectors themselves.

    Parameters
    ----------
    checkpoint : hub id, or a folder that holds both files.
    weights : name of the checkpoint in it.
    config_checkpoint : hub id of the configuration; not used for a folder.
    config : name of the configuration.
    name : to print.

    Raises
    ------
    ImportError : if the package is missing.
    FileNotFoundError : if files are missing.
    ValueError : if they are damaged or of another model.
    """

    has_feats = True

    def __init__(
        self,
        *,
        checkpoint: str | PathLike[str],
        weights: str,
        config_checkpoint: str,
        config: str,
        name: str = "WavTokenizer",
    ) -> None:
        super().__init__()
        package = import_package("wavtokenizer", install=_INSTALL)
        is_folder = Path(checkpoint).expanduser().is_dir()
        (weights_file,) = find_files(checkpoint, [weights])
        (config_file,) = find_files(checkpoint if is_folder else config_checkpoint, [config])
        try:
            self.model = package.WavTokenizer.from_pretrained0802(
                str(config_file), str(weights_file)
            )
        except Exception as error:  # YAML, unpickling and loading errors of the package
            raise ValueError(
                f"{weights_file} does not fit {config_file}: {' '.join(str(error).split())}"
            ) from error
        self.eval().requires_grad_(False)
        self.name, self.model_id = name, model_id(checkpoint)
        self.sample_rate = self.sample_rate_output = self._autoencoder.sample_rate
        self.token_rate = self.sample_rate / float(self._autoencoder.encoder.hop_length)
        self.num_codebooks, self.codebook_size = 1, self._autoencoder.quantizer.bins

    @property
    def _autoencoder(self) -> torch.nn.Module:
        return self.model.feature_extractor.encodec

    @property
    def _bandwidth(self) -> Tensor:
        return torch.zeros(1, dtype=torch.long, device=self.device)  # the only one it was made for

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        codes = self.model.encode_infer(sig, bandwidth_id=self._bandwidth)[1]  # (K, 1, L)
        return codes.movedim(0, -1).clone()

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self._feats_to_sig(self._toks_to_qfeats(toks))

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        return self._autoencoder.encoder(sig[:, None]).transpose(1, 2)

    def _toks_to_qfeats(self, toks: Tensor) -> Tensor:
        return self.model.codes_to_features(toks.movedim(-1, 0)).transpose(1, 2)

    def _feats_to_sig(self, feats: Tensor) -> Tensor:
        return self.model.decode(feats.transpose(1, 2), bandwidth_id=self._bandwidth).clone()

    def embeddings(self) -> Tensor:
        """(1, codebook_size, 512) code vectors, which the decoder takes."""
        return self._autoencoder.quantizer.vq.layers[0].codebook[None]
