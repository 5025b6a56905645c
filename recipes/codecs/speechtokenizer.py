"""SpeechTokenizer (Zhang et al., 2024, arXiv:2308.16692) through its own package.

Interface read in and run with the wheel speechtokenizer 1.0.1, ``speechtokenizer/model.py``
(github.com/ZhangXInFD/SpeechTokenizer); file names on the hub from lucadellalib/audiocodecs.
"""

import json
from os import PathLike

import torch
from torch import Tensor

from recipes.codecs.codec import Codec
from recipes.codecs.sources import (
    check_num_codebooks,
    find_files,
    import_package,
    load_tensors,
    model_id,
)

# The package imports its trainer, which needs beartype and does not declare it.
_INSTALL = "pip install speechtokenizer==1.0.1 beartype"


class SpeechTokenizer(Codec):
    """Residual codebooks, the first of which is taught the content by HuBERT.

    Parameters
    ----------
    checkpoint : hub id, or a folder of the same layout.
    subfolder : of ``config.json`` and ``SpeechTokenizer.pt`` in it.
    num_codebooks : the first of those in the checkpoint; 2 are 1 kbit/s at 50 Hz.
    name : to print.

    Raises
    ------
    ImportError : if the package is missing.
    FileNotFoundError : if files are missing.
    ValueError : if a file is damaged or there are fewer codebooks.
    """

    def __init__(
        self,
        *,
        checkpoint: str | PathLike[str],
        subfolder: str,
        num_codebooks: int,
        name: str = "SpeechTokenizer",
    ) -> None:
        super().__init__()
        package = import_package("speechtokenizer", install=_INSTALL)
        files = [f"{subfolder}/config.json", f"{subfolder}/SpeechTokenizer.pt"]
        config_file, weights = find_files(checkpoint, files)
        config = json.loads(config_file.read_text(encoding="utf-8"))
        check_num_codebooks(num_codebooks, choices=range(1, config["n_q"] + 1), name=name)
        self.model = package.SpeechTokenizer(config)
        self.model.load_state_dict(load_tensors(weights))
        self.eval().requires_grad_(False)
        self.name, self.model_id = name, f"{model_id(checkpoint)}/{subfolder}"
        self.sample_rate = self.sample_rate_output = self.model.sample_rate
        self.token_rate = self.sample_rate / float(self.model.downsample_rate)
        self.num_codebooks, self.codebook_size = num_codebooks, config["codebook_size"]

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        return self.model.encode(sig[:, None], n_q=self.num_codebooks).movedim(0, -1)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self.model.decode(toks.movedim(-1, 0))[:, 0]

    def embeddings(self) -> Tensor:
        """(K, codebook_size, 1024) code vectors; the decoder takes their sum."""
        layers = self.model.quantizer.vq.layers[: self.num_codebooks]
        return torch.stack([layer.codebook for layer in layers])
