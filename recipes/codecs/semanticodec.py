"""SemantiCodec (Liu et al., 2024, arXiv:2405.00233) through its own package.

There is no wheel: interface read in github.com/haoheliu/SemantiCodec-inference,
``semanticodec/main.py``, ``config.py``, ``utils.py`` and ``modules/encoder/encoder.py``, not run.
"""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.codecs.codec import Codec
from recipes.codecs.sources import find_files, import_package, model_id

_INSTALL = "pip install git+https://github.com/haoheliu/SemantiCodec-inference.git"
_HUB_ID = "haoheliu/SemantiCodec"  # the package knows no other
_CENTROIDS = "codebook_idx/combine_256_audioset_dominate/codebook_4096_0.npy"
_PATCH = 2560  # samples; the encoder's time step, 4 tokens of each codebook
_TOKS_PER_PATCH = 4
_SEGMENT = 163_840  # samples that the encoder sees at once
_FRAMES_PER_SEGMENT = 1024


class SemantiCodec(Codec):
    """Semantic tokens of AudioMAE and acoustic ones beside it, decoded by latent diffusion.

    25 Hz of two codebooks, which the package calls a token rate of 50. Decoding draws noise; the
    same noise for every utterance, so that a result can be repeated.

    Parameters
    ----------
    checkpoint : hub id haoheliu/SemantiCodec; or a folder with ``encoder.ckpt``, ``decoder.ckpt``
        and the semantic codebook under ``codebook_idx``.
    name : to print.

    Raises
    ------
    ImportError : if the package is missing.
    FileNotFoundError : if files are missing.
    ValueError : for another hub id.
    """

    sample_rate = sample_rate_output = 16_000  # Hz
    token_rate = 25.0  # Hz
    num_codebooks = 2
    codebook_size = 8192

    def __init__(self, *, checkpoint: str | PathLike[str], name: str = "SemantiCodec") -> None:
        super().__init__()
        package = import_package("semanticodec", install=_INSTALL)
        self._mel = import_package("semanticodec.utils", install=_INSTALL)
        folder = Path(checkpoint).expanduser()
        if folder.is_dir():
            find_files(folder, ["encoder.ckpt", "decoder.ckpt", _CENTROIDS])
            place = {"checkpoint_path": str(folder)}
        elif str(checkpoint) == _HUB_ID:
            place = _downloaded()
        else:
            raise ValueError(f"checkpoint must be {_HUB_ID} or a folder here, got {checkpoint}")
        self.model = package.SemantiCodec(token_rate=50, semantic_vocab_size=8192, **place)
        self.to("cpu").eval().requires_grad_(False)  # the package chooses a device by itself
        self.register_buffer("centroids", self.model.encoder.centroid_npy.cpu(), persistent=False)
        self.name, self.model_id = name, model_id(checkpoint)

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        num_toks = _TOKS_PER_PATCH * -(-sig.shape[1] // _PATCH)
        padded = F.pad(sig, (0, -sig.shape[1] % _SEGMENT))
        num_frames = _FRAMES_PER_SEGMENT * (padded.shape[1] // _SEGMENT)
        mel = self._mel.extract_kaldi_fbank_feature(
            padded, self.sample_rate, target_length=num_frames
        )["ta_kaldi_fbank"]
        self._follow_device()
        return self.model.encoder(mel[None].to(sig.device))[:, :num_toks]

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        self._follow_device()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            decoded = self.model.decode(toks)
        return torch.as_tensor(decoded, dtype=torch.float32, device=toks.device)[:, 0]

    def _follow_device(self) -> None:
        """Tell the package where the codec is: it keeps devices, and centroids in no buffer."""
        encoder = self.model.encoder
        encoder.centroid_npy = self.centroids
        encoder.device = self.model.decoder.device = self.device

    def embeddings(self) -> Tensor:
        """(2, 8192, 1536) semantic and acoustic code vectors; the decoder takes them joined."""
        toks = torch.arange(self.codebook_size, device=self.device)
        acoustic = self.model.encoder.quantizer.get_output_from_indices(toks[None])
        return torch.stack([self.centroids, acoustic.reshape_as(self.centroids)])


def _downloaded() -> dict[str, str]:
    """Argument of the package for the hub's cache, with what it reads there already."""
    from huggingface_hub.constants import HF_HUB_CACHE

    stem = "semanticodec_tokenrate_50"
    find_files(_HUB_ID, [f"{stem}/encoder.ckpt", f"{stem}/decoder.ckpt", _CENTROIDS])
    return {"cache_path": HF_HUB_CACHE}
