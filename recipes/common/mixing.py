"""What one row of a test set is made of: the signal to encode, its target, its reference.

Between a manifest (`recipes.common.manifests`) and an evaluation. A noisy signal that is no file of
its own is mixed here on the fly, at 16 kHz, the way LibriMix mixes its files, so that nothing is
ever written to the user's data.

References
----------
[1] Cosentino et al., "LibriMix: an open-source dataset for generalizable speech separation", 2020,
    arXiv:2005.11262; github.com/JorisCos/LibriMix, scripts/create_librimix_from_metadata.py: order
    of the steps, first channel, how short noise is made longer.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from focalcodec.resampling import resample
from recipes.common.dataio import load_sig

SAMPLE_RATE = 16_000  # Hz, at which mixtures are made
MAX_PEAK = 0.99  # of a mixture made at a chosen ratio
SILENCE = 1e-4  # root mean square (-80 dB) below which a signal has no level to be mixed by

_FADE = SAMPLE_RATE // 2 + 1  # samples over which noise is faded into its own beginning


class Gains(NamedTuple):
    """Linear factors of the two parts of a mixture."""

    speech: float
    noise: float


def load_input(row: Mapping[str, Any], *, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Load the signal to encode: ``wav``, or its mixture with ``noise``.

    Parameters
    ----------
    row : of a manifest, with real paths (`recipes.common.dataio.read_manifest`).
    sample_rate : wanted, in Hz; a mixture is made at 16 kHz and then resampled.

    Returns
    -------
    (T,) float32.

    Raises
    ------
    BadAudioError : if a file cannot be used.
    """
    if "noise" not in row:
        return load_sig(row["wav"], sample_rate=sample_rate)
    speech = load_sig(row["wav"], sample_rate=SAMPLE_RATE)
    noise = load_noise(row["noise"], num_samples=len(speech))
    sig = mix(speech, noise, gains=Gains(row["speech_gain"], row["noise_gain"]))
    return resample(sig, sample_rate=SAMPLE_RATE, new_sample_rate=sample_rate)


def load_target(row: Mapping[str, Any], *, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Load the signal that decoded audio is compared with.

    ``target`` where the row has one; else ``wav``, in a mixture times its gain. As long as the
    input at the same rate, but for voice conversion, where another speaker says the sentence.
    Parameters, result and errors as those of `load_input`.
    """
    if "target" in row:
        return load_sig(row["target"], sample_rate=sample_rate)
    if "noise" not in row:
        return load_sig(row["wav"], sample_rate=sample_rate)
    sig = load_sig(row["wav"], sample_rate=SAMPLE_RATE) * row["speech_gain"]
    return resample(sig, sample_rate=SAMPLE_RATE, new_sample_rate=sample_rate)


def load_targets(row: Mapping[str, Any], *, sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
    """Load every signal that is to be made of the input: ``target``, and ``target_2`` if there is.

    The first as `load_target` gives it. Parameters and errors as those of `load_input`.

    Returns
    -------
    One signal (T,), or both speakers' of a mixture, each as long as the input at the same rate.
    """
    first = load_target(row, sample_rate=sample_rate)
    if "target_2" not in row:
        return [first]
    return [first, load_sig(row["target_2"], sample_rate=sample_rate)]


def load_reference(row: Mapping[str, Any], *, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Load the voice to convert to; parameters, result and errors as those of `load_input`.

    Raises
    ------
    ValueError : if the row has none.
    """
    if "reference" not in row:
        raise ValueError(
            f"{row['wav']} has no reference; voice conversion needs a test set of parallel "
            "sentences, such as dataset/vctk_pairs.yaml or dataset/parallel.yaml"
        )
    return load_sig(row["reference"], sample_rate=sample_rate)


def load_noise(path: str | Path, *, num_samples: int) -> Tensor:
    """Load the first samples of a noise's first channel at 16 kHz; a short one is made longer.

    Parameters
    ----------
    path : anything that libsndfile reads.
    num_samples : wanted, at 16 kHz.

    Returns
    -------
    (num_samples,) float32.

    Raises
    ------
    BadAudioError : if the file cannot be used.
    """
    noise = load_sig(path, sample_rate=SAMPLE_RATE, num_samples=num_samples, channel=0)
    return extend_noise(noise, num_samples=num_samples)


def extend_noise(noise: Tensor, *, num_samples: int) -> Tensor:
    """Repeat noise up to a length, each time faded into its own beginning over half a second.

    The fades are the halves of a Hann window, so their factors add up to 1 everywhere [1].
    LibriMix cannot extend noise that is no longer than the fade; here the fade is half of it then.

    Parameters
    ----------
    noise : (T,) at 16 kHz, T >= 1.
    num_samples : wanted.

    Returns
    -------
    (num_samples,): the beginning of ``noise`` if it is long enough.
    """
    fade = _FADE if len(noise) > _FADE else len(noise) // 2
    ramp = torch.arange(fade, dtype=torch.float64) / max(1, fade - 1)
    rising = (0.5 - 0.5 * torch.cos(torch.pi * ramp)).to(noise.dtype)
    extended = noise
    while len(extended) < num_samples:
        tail = extended[len(extended) - fade :]
        faded = tail * (1 - rising) + noise[:fade] * rising
        extended = torch.cat([extended[: len(extended) - fade], faded, noise[fade:]])
    return extended[:num_samples]


def mix(speech: Tensor, noise: Tensor, *, gains: Gains) -> Tensor:
    """Sum of both signals (T,), each times its gain; neither clipped nor rescaled."""
    return speech * gains.speech + noise * gains.noise


def gains_at_snr(speech: Tensor, noise: Tensor, *, snr_db: float) -> Gains:
    """Gains of a mixture with a signal-to-noise ratio over its whole length.

    Speech keeps its level unless the mixture's peak would exceed 0.99; then both are lowered.

    Parameters
    ----------
    speech, noise : (T,), as long as each other.
    snr_db : ratio of their mean squares after the gains, in dB.

    Raises
    ------
    ValueError : if one of them is silent (root mean square below -80 dB), or of another length.
    """
    if speech.shape != noise.shape:
        raise ValueError(
            "speech and noise must have the same shape (T,), "
            f"got {tuple(speech.shape)} and {tuple(noise.shape)}; use extend_noise"
        )
    levels = {"speech": root_mean_square(speech), "noise": root_mean_square(noise)}
    if silent := [name for name, level in levels.items() if level < SILENCE]:
        raise ValueError(f"{silent[0]} is silent: there is no ratio to mix it at")
    gains = Gains(1.0, levels["speech"] / levels["noise"] * 10 ** (-snr_db / 20))
    peak = float(mix(speech, noise, gains=gains).abs().max())
    scale = MAX_PEAK / max(peak, MAX_PEAK)
    return Gains(gains.speech * scale, gains.noise * scale)


def mix_at_snr(speech: Tensor, noise: Tensor, *, snr_db: float) -> Tensor:
    """Mixture (T,) with a signal-to-noise ratio; parameters and errors as `gains_at_snr`."""
    return mix(speech, noise, gains=gains_at_snr(speech, noise, snr_db=snr_db))


def root_mean_square(sig: Tensor) -> float:
    """Level of a signal (T,)."""
    return math.sqrt(float(sig.double().square().mean()))
