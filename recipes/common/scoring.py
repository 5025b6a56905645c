"""What all audio scores start from: one utterance at 16 kHz, its spectrum, an optional package.

Other sample rates are resampled by one fixed resampler, and samples beyond [-1, 1] are scored as
they are, neither clipped nor rescaled.
"""

import functools
import importlib
import math
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
import torchaudio
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz, at which every audio score is taken
RESAMPLER = {  # every parameter written out: scores depend on them
    "lowpass_filter_width": 6,
    "rolloff": 0.99,
    "resampling_method": "sinc_interp_hann",
}

_PIP_NAMES = {"pesq": "pesq==0.0.4"}  # where it is not the package's own name


class ScoreError(ValueError):
    """One utterance has no score: it is too short, silent, empty or not finite."""


class MissingPackageError(ImportError):
    """An optional package is not installed; the message holds the pip line that installs it."""


class MissingWeightsError(RuntimeError):
    """A model's weights are not here, or not its own; the message says how to get them."""


def to_16k(sig: Tensor | np.ndarray, *, sample_rate: int) -> Tensor:
    """Resample an utterance.

    Parameters
    ----------
    sig : (T,) floating point.
    sample_rate : Hz.

    Returns
    -------
    (T',) float32 on the CPU, at 16 kHz.

    Raises
    ------
    ScoreError : if the audio is empty or not finite.
    ValueError : if the shape is not (T,) or the type not floating point.
    """
    sig = torch.as_tensor(sig)
    if sig.ndim != 1 or not sig.is_floating_point():
        raise ValueError(
            "a score takes one utterance, floating point of shape (T,), "
            f"got {sig.dtype} of shape {tuple(sig.shape)}"
        )
    sig = sig.detach().cpu().float()
    if sig.numel() == 0:
        raise ScoreError("the utterance is empty")
    if not sig.isfinite().all():
        raise ScoreError("the utterance has samples that are not finite")
    return torchaudio.functional.resample(sig, sample_rate, SAMPLE_RATE, **RESAMPLER)


def spectrum(sig: Tensor, *, n_fft: int, hop_length: int) -> Tensor:
    """(..., frames, bins) complex STFT; zeros around the signal, so any length will do."""
    window = torch.hann_window(n_fft)
    frames_last = torch.stft(
        sig, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True
    )
    return frames_last.transpose(-1, -2)


@functools.cache
def mel_filters(n_fft: int, num_bands: int) -> Tensor:
    """(bins, bands) triangles of unit area on Slaney's mel scale, 0 to 8 kHz.

    Not torchaudio's, which takes the last bin for the Nyquist frequency: wrong for an odd
    ``n_fft``, such as that of DNSMOS P.808.
    """
    # Linear up to 1 kHz, 200/3 Hz a mel; then 27 mels for a factor of 6.4.
    top = 15 + 27 * math.log(SAMPLE_RATE / 2 / 1000) / math.log(6.4)
    mels = torch.linspace(0, top, num_bands + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))  # Hz
    bins = torch.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)).float()


def load_package(name: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    MissingPackageError : if it is missing or does not load.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, ValueError) as error:  # ValueError: built for another numpy
        raise missing_package(name, error) from error


def package_versions(*names: str) -> str:
    """Versions of installed packages in one line, such as ``jiwer 4.0.0, numpy 2.4.6``."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def missing_package(name: str, error: object) -> MissingPackageError:
    """One line for an optional package that is missing, with what went wrong and the pip line."""
    pip_name, reason = _PIP_NAMES.get(name, name), " ".join(str(error).split())
    return MissingPackageError(f"{name} cannot be loaded ({reason}); pip install {pip_name}")
