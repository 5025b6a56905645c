"""Speaker similarity: the cosine between speaker embeddings of decoded audio and of its target.

Two kinds of models are read: x-vector models of transformers, such as ``microsoft/wavlm-base-sv``,
with which published results are computed, and ECAPA-TDNNs of SpeechBrain.

The second, stricter model is ``speechbrain/spkrec-ecapa-voxceleb`` because the first is of the
family of the codec's encoder, WavLM, and saturates: to call two voices the same, transformers'
example for such models asks for a cosine of 0.7 (transformers/utils/doc.py), SpeechBrain's for this
one of 0.25 (``SpeakerRecognition.verify_batch``). The ECAPA-TDNN hears filterbanks and shares no
weights with WavLM.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import Tensor

from recipes.common.score_models import (
    FoundModel,
    NeededFiles,
    Remembered,
    Source,
    find_model,
    load_pretrained,
    loading,
)
from recipes.common.scoring import (
    SAMPLE_RATE,
    ScoreError,
    package_versions,
    to_16k,
)

_ECAPA_WEIGHTS = "embedding_model.ckpt"
_ECAPA_DILATIONS = (1, 2, 3, 4, 1)
_FILES = {
    "ecapa": NeededFiles(groups=((_ECAPA_WEIGHTS,),), weights=(_ECAPA_WEIGHTS,)),
    "xvector": NeededFiles(
        groups=(("config.json",), ("preprocessor_config.json", "processor_config.json")),
        weights=("model.safetensors", "pytorch_model.bin"),
    ),
}
# Of an x-vector model: what only training needs.
_UNUSED = ("masked_spec_embed", "objective.", "classifier.")


class SpeakerModel:
    """Speaker embeddings of single utterances, each worked out once.

    Parameters
    ----------
    embed : module from a signal (1, T) at 16 kHz to an embedding (1, E).
    min_samples : the shortest signal that it takes.
    device : where it shall run.
    """

    def __init__(self, *, embed: torch.nn.Module, min_samples: int, device: str):
        self.embed = embed.float().eval().requires_grad_(False).to(device)
        self.min_samples = min_samples
        self.device = device
        self._remembered = Remembered(self._embedding)

    @torch.no_grad()
    def __call__(self, sig: Tensor) -> Tensor:
        """Embedding (E,) float64 on the CPU of a signal (T,) at 16 kHz.

        Raises
        ------
        ScoreError : if the signal is too short.
        """
        if len(sig) < self.min_samples:
            raise ScoreError(
                f"speaker similarity needs {self.min_samples / SAMPLE_RATE:.3f} s of audio, got "
                f"{len(sig) / SAMPLE_RATE:.3f} s"
            )
        return self._remembered(sig)

    def _embedding(self, sig: Tensor) -> Tensor:
        return self.embed(sig[None].to(self.device))[0].double().cpu()


def speaker_similarity(
    ref_sig: Tensor | np.ndarray,
    hyp_sig: Tensor | np.ndarray,
    *,
    sample_rate: int,
    model: SpeakerModel,
) -> float:
    """Cosine between the speaker embeddings of decoded audio and of its target.

    Parameters
    ----------
    ref_sig : (T,) target.
    hyp_sig : (T',) decoded; any length.
    sample_rate : Hz, of both.
    model : see `load_speaker_model`.

    Returns
    -------
    -1 to 1 (the same direction); a fraction, which papers print times 100.

    Raises
    ------
    ScoreError : if audio is empty, too short or not finite.

    References
    ----------
    [1] FocalCodec, section 4.1 (``microsoft/wavlm-base-sv``).
    [2] Desplanques et al., 2020, arXiv:2005.07143 (ECAPA-TDNN).
    """
    ref, hyp = (model(to_16k(sig, sample_rate=sample_rate)) for sig in (ref_sig, hyp_sig))
    norms = ref.norm() * hyp.norm()
    if norms == 0:
        raise ScoreError("the speaker model gives no embedding but zeros")
    return float((ref @ hyp / norms).clamp(-1, 1))


def find_speaker_model(source: Source, *, field: str) -> FoundModel:
    """Find a speaker model of either kind; errors as in `recipes.common.score_models.find_model`.

    Parameters
    ----------
    source : hub id or folder.
    field : of `recipes.common.score_models.ScoreModels`, for messages.
    """
    kind = "ecapa" if _is_ecapa(source) else "xvector"
    return find_model(source, field=field, files=_FILES[kind])


@functools.lru_cache(maxsize=4)
def load_speaker_model(source: Source, *, field: str, device: str) -> SpeakerModel:
    """Load a speaker model, once a process.

    Parameters
    ----------
    source : hub id or folder; an ECAPA-TDNN if the folder holds ``embedding_model.ckpt`` or the hub
        id says ``ecapa``, otherwise an x-vector model of transformers.
    field : of `recipes.common.score_models.ScoreModels`, for messages.
    device : where it shall run.

    Raises
    ------
    FileNotFoundError : if a local folder does not exist.
    MissingWeightsError : if the weights cannot be had, or the folder holds no such model.
    """
    found = find_speaker_model(source, field=field)
    with loading(found, field=field, kind="speaker model"):
        embed = (
            _Ecapa(found.weights[0])
            if found.weights[0].name == _ECAPA_WEIGHTS
            else _XVector(found.folder)
        )
        return SpeakerModel(embed=embed, min_samples=embed.min_samples, device=device)


def describe_speaker_model(source: Source, *, field: str) -> str:
    """One line of what a similarity depends on: the weights and the package that runs them."""
    found = find_speaker_model(source, field=field)
    is_ecapa = found.weights[0].name == _ECAPA_WEIGHTS
    package = "speechbrain" if is_ecapa else "transformers"
    return f"{found.describe()}; cosine; {package_versions(package)}"


def _is_ecapa(source: Source) -> bool:
    if Path(source).expanduser().is_dir():
        return (Path(source).expanduser() / _ECAPA_WEIGHTS).is_file()
    return "ecapa" in str(source).lower()


class _XVector(torch.nn.Module):
    def __init__(self, folder: Path):
        from transformers import AutoModelForAudioXVector, Wav2Vec2FeatureExtractor

        super().__init__()
        self.model = load_pretrained(AutoModelForAudioXVector, folder, unused=_UNUSED)
        self.extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)

    @property
    def min_samples(self) -> int:
        """Two frames must be left by the convolutions, for there to be a standard deviation."""
        config = self.model.config
        size = 2 + sum(
            (kernel - 1) * dilation
            for kernel, dilation in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
        )
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            size = (size - 1) * stride + kernel
        return size

    def forward(self, sig: Tensor) -> Tensor:
        inputs: Any = self.extractor(
            sig[0].cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        return self.model(inputs.input_values.to(sig.device)).embeddings


class _Ecapa(torch.nn.Module):
    """ECAPA-TDNN in front of which stand its 80 log-mel bands without their mean.

    All sizes but the dilations are seen in the weights, so that the hyperparams.yaml beside them,
    which is code, is not run.
    """

    min_samples = 640  # 5 frames of 10 ms: the widest convolution mirrors 4

    def __init__(self, weights: Path):
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        block = "blocks.1.res2net_block.blocks.0.conv.conv.weight"
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        layers = [shapes["blocks.0.conv.conv.weight"]]
        layers += [
            (shapes[f"blocks.{i}.tdnn2.conv.conv.weight"][0], 0, shapes[block][2])
            for i in range(1, 4)
        ]
        layers += [shapes["mfa.conv.conv.weight"]]
        self.features = Fbank(n_mels=layers[0][1], sample_rate=SAMPLE_RATE)
        self.model = ECAPA_TDNN(
            input_size=layers[0][1],
            channels=[layer[0] for layer in layers],
            kernel_sizes=[layer[2] for layer in layers],
            dilations=list(_ECAPA_DILATIONS),
            attention_channels=shapes["asp.tdnn.conv.conv.weight"][0],
            res2net_scale=layers[1][0] // shapes[block][0],
            se_channels=shapes["blocks.1.se_block.conv1.conv.weight"][0],
            lin_neurons=shapes["fc.conv.weight"][0],
        )
        self.model.load_state_dict(state)

    def forward(self, sig: Tensor) -> Tensor:
        feats = self.features(sig)
        return self.model(feats - feats.mean(1, keepdim=True))[:, 0]
