"""Stable Codec (Parker et al., 2024, arXiv:2411.19842) through its own package.

Interface read in and run with the wheels stable-codec 0.1.2 (``stable_codec/model.py``,
``residual_fsq.py``) and stable-audio-tools 0.0.17 (with 0.0.19 the former cannot be imported). They
pin PyTorch 2.4, hence ``--no-deps`` below.
"""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.codecs.codec import Codec
from recipes.codecs.sources import (
    check_num_codebooks,
    find_files,
    import_package,
    load_tensors,
    model_id,
)
from recipes.common.scoring import MissingPackageError

_INSTALL = (
    "pip install --no-deps stable-codec==0.1.2 stable-audio-tools==0.0.17 && "
    "pip install alias-free-torch einops einops-exts k-diffusion pytorch-lightning prefigure wandb"
)
_WEIGHTS = ("model.safetensors", "model.ckpt")
_BOTTLENECKS = {1: "1x46656_400bps", 2: "2x15625_700bps", 4: "4x729_1000bps"}  # by codebooks


class StableCodec(Codec):
    """Transformers around finite scalar quantization, residual after training.

    The level of a signal is kept; the package brings files, but not signals, to -20 LUFS first.

    Parameters
    ----------
    checkpoint : hub id, or a folder of the same files: ``model_config.json`` and
        ``model.safetensors`` or ``model.ckpt``.
    num_codebooks : 1, 2 or 4, of 46656, 15625 or 729 codes.
    name : to print.

    Raises
    ------
    MissingPackageError : if the package is missing; or if the checkpoint's attention has windows
        and FlashAttention, without which the package attends to everything, is not there: it would
        run with other results.
    FileNotFoundError : if files are missing.
    ValueError : if files are damaged or there is no such bottleneck.
    """

    has_feats = True

    def __init__(
        self, *, checkpoint: str | PathLike[str], num_codebooks: int, name: str = "Stable Codec"
    ) -> None:
        super().__init__()
        check_num_codebooks(num_codebooks, choices=tuple(_BOTTLENECKS), name=name)
        package = import_package("stable_codec", install=_INSTALL)
        # Imported when a model is made, with packages of its own.
        import_package("stable_audio_tools.models.autoencoders", install=_INSTALL)
        config, weights = find_files(checkpoint, ["model_config.json", _WEIGHTS])
        self.model = package.StableCodec(model_config_path=str(config))
        self.model.model.load_state_dict(_read(weights))
        self.model.set_posthoc_bottleneck(_BOTTLENECKS[num_codebooks])
        self.eval().requires_grad_(False)
        check_attention(self.model, name=name)
        self.name, self.model_id = name, model_id(checkpoint)
        self.sample_rate = self.sample_rate_output = self.model.sample_rate
        self.token_rate = self.sample_rate / self.model.model.downsampling_ratio
        self.num_codebooks = num_codebooks
        self.codebook_size = self.model.residual_fsq.quantizers[0].codebook_size

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        return torch.cat(self._encode(sig)[1], dim=-1)  # K x (1, L, 1)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self._feats_to_sig(self._toks_to_qfeats(toks))

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        return torch.tanh(self._encode(sig)[0]).transpose(1, 2)  # what is quantized

    def _toks_to_qfeats(self, toks: Tensor) -> Tensor:
        return self.model.residual_fsq.decode(list(toks.split(1, dim=-1))).transpose(1, 2)

    def _feats_to_sig(self, feats: Tensor) -> Tensor:
        return self.model.model.decode_audio(feats.transpose(1, 2))[:, 0]

    def _encode(self, sig: Tensor) -> tuple[Tensor, list[Tensor]]:
        padded = F.pad(sig, (0, -sig.shape[1] % self.samples_per_tok))
        return self.model.encode(padded[:, None], posthoc_bottleneck=True)

    def embeddings(self) -> Tensor:
        """(K, codebook_size, 6) values of every token; the decoder takes their sum."""
        toks = torch.arange(self.codebook_size, device=self.device)[:, None]
        return torch.stack([q.indices_to_codes(toks) for q in self.model.residual_fsq.quantizers])


def check_attention(model: torch.nn.Module, *, name: str) -> None:
    """Refuse a model whose attention has windows that its package would not keep to.

    Parameters
    ----------
    model : with modules of ``sliding_window``, frames before and after, [-1, -1] for all; and
        ``use_fa_flash``, whether FlashAttention is used.
    name : of the codec, for the message.

    Raises
    ------
    MissingPackageError : if windows need FlashAttention and it is not used.
    """
    for part in model.modules():
        window = getattr(part, "sliding_window", None)
        if window is not None and list(window) != [-1, -1] and not part.use_fa_flash:
            raise MissingPackageError(
                f"{name} attends within windows of {window} frames, which its package does with "
                "FlashAttention on a GPU only; pip install flash-attn --no-build-isolation"
            )


def _read(weights: Path) -> dict[str, Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(weights)
    return load_tensors(weights)["state_dict"]
