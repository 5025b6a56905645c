"""DNSMOS: speech quality as listeners would rate it, predicted without a reference."""

import functools
import importlib.machinery
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.common.score_models import hash_line
from recipes.common.scoring import (
    SAMPLE_RATE,
    load_package,
    mel_filters,
    missing_package,
    package_versions,
    spectrum,
    to_16k,
)

_P835_MODEL, _P808_MODEL = "sig_bak_ovr.onnx", "model_v8.onnx"
_WINDOW_S = 9.01
_WINDOW_SAMPLES = 144_160
_P835_POLYNOMIALS = (  # for sig, bak, ovrl; highest power first
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Dnsmos(NamedTuple):
    """Predicted mean opinion scores, about 1 (bad) to 5 (excellent)."""

    sig: float
    bak: float
    ovrl: float
    p808: float


def dnsmos(hyp_sig: Tensor | np.ndarray, *, sample_rate: int) -> Dnsmos:
    """DNSMOS P.835 (speech, background, overall) and P.808, without a reference.

    Windows of 9.01 s every second, as Microsoft's script takes them; a shorter utterance is
    repeated. The P.835 outputs go through the published polynomials of the non-personalised model.

    Parameters
    ----------
    hyp_sig : (T,) decoded, or any audio.
    sample_rate : Hz.

    Returns
    -------
    Mean over windows of the four scores.

    Raises
    ------
    ScoreError : if the audio is empty or not finite.
    ValueError : if the shape is not (T,).
    MissingPackageError : without ``onnxruntime`` or ``speechmos``.

    References
    ----------
    [1] Reddy et al., "DNSMOS P.835", 2022, arXiv:2110.01763; polynomials and windows from
        microsoft/DNS-Challenge, DNSMOS/dnsmos_local.py; model files from the wheel ``speechmos``.
    """
    p835_model, p808_model = _session(_P835_MODEL), _session(_P808_MODEL)
    windows = _windows(to_16k(hyp_sig, sample_rate=sample_rate).numpy())
    raw = [p835_model.run(None, {"input_1": window[None]})[0][0] for window in windows]
    mel = [_mel(torch.from_numpy(window)) for window in windows]
    p808 = [p808_model.run(None, {"input_1": m[None].numpy()})[0][0, 0] for m in mel]
    calibrated = [
        np.polyval(polynomial, column).mean()
        for polynomial, column in zip(_P835_POLYNOMIALS, np.array(raw, np.float64).T, strict=True)
    ]
    return Dnsmos(*map(float, calibrated), p808=float(np.mean(p808, dtype=np.float64)))


def models_folder() -> Path:
    """Folder of the model files, in the wheel ``speechmos``.

    Raises
    ------
    MissingPackageError : if it is not installed.
    """
    # PathFinder rather than importlib.util.find_spec: that would answer with UTMOS' hub package,
    # which has the same name, once it has been imported. The package itself is never imported: it
    # needs librosa.
    spec = importlib.machinery.PathFinder.find_spec("speechmos")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (models := Path(folder, "dnsmos_models")).is_dir():
            return models
    raise missing_package("speechmos", "not found")


def describe_dnsmos() -> str:
    """One line of what DNSMOS depends on: hashes of its models, and packages."""
    hashes = [hash_line(models_folder() / name) for name in (_P835_MODEL, _P808_MODEL)]
    return f"{', '.join(hashes)}; {package_versions('speechmos', 'onnxruntime')}"


@functools.cache
def _session(file_name: str):
    onnxruntime = load_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        models_folder() / file_name, options, providers=["CPUExecutionProvider"]
    )


def _windows(sig: np.ndarray) -> list[np.ndarray]:
    while sig.size < _WINDOW_SAMPLES:
        sig = np.concatenate([sig, sig])
    num_hops = int(sig.size // SAMPLE_RATE - _WINDOW_S) + 1
    # Microsoft's script rounds a window's end down in floating point and drops the window if it
    # lost a sample (those that start at 7 to 23 s, for one). Published scores are means without
    # them, so ours are as well.
    starts = [s for s in range(num_hops) if int((s + _WINDOW_S) * SAMPLE_RATE) >= _end(s)]
    return [sig[s * SAMPLE_RATE : _end(s)] for s in starts]


def _end(start_s: int) -> int:
    return start_s * SAMPLE_RATE + _WINDOW_SAMPLES


def _mel(window: Tensor) -> Tensor:
    """(900, 120) input of P.808: mel power relative to its maximum, -80 to 0 dB as -1 to 1."""
    power = spectrum(window[:-160], n_fft=321, hop_length=160).abs().square()
    decibels = 10 * (power @ mel_filters(321, 120)).clamp_min(1e-10).log10()
    return (decibels - decibels.max()).clamp_min(-80) / 40 + 1
