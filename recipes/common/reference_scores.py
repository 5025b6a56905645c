"""Scores of decoded audio against its original, sample by sample: STOI, PESQ, spectral distances.

Every score is a pure function of one unpadded pair of equal length, taken at 16 kHz. The packages
behind STOI and PESQ are optional.
"""

import subprocess
import sys
import warnings

import numpy as np
import torch
from torch import Tensor

from recipes.common.scoring import (
    SAMPLE_RATE,
    ScoreError,
    load_package,
    mel_filters,
    spectrum,
    to_16k,
)


def stoi(ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int) -> float:
    """Short-time objective intelligibility (STOI, not the extended ESTOI).

    Parameters
    ----------
    ref_sig : (T,) original.
    hyp_sig : (T,) decoded.
    sample_rate : Hz, of both.

    Returns
    -------
    About 0 (unintelligible) to 1 (identical).

    Raises
    ------
    ScoreError : if the reference is silent, or has less than 0.4 s of speech (frames within 40 dB
        of its loudest).
    ValueError : if the shapes differ or are not (T,).
    MissingPackageError : without ``pystoi``.

    References
    ----------
    [1] Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy
        speech", 2011, as computed by the package ``pystoi``.
    """
    package = load_package("pystoi")
    ref_sig, hyp_sig = _speech_pair(ref_sig, hyp_sig, sample_rate=sample_rate)
    too_short = ScoreError("STOI needs at least 0.4 s of speech after silent frames are removed")
    if ref_sig.size < 0.39 * SAMPLE_RATE:  # less than a frame would be an IndexError in pystoi
        raise too_short
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score = package.stoi(ref_sig, hyp_sig, SAMPLE_RATE, extended=False)
    # Where too little speech is left pystoi warns and returns 1e-5, which would pass for a score.
    if any("Not enough STFT frames" in str(warning.message) for warning in caught):
        raise too_short
    return float(score)


def pesq(ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2, mapped to MOS-LQO).

    Parameters
    ----------
    ref_sig : (T,) original.
    hyp_sig : (T,) decoded.
    sample_rate : Hz, of both.

    Returns
    -------
    1.0 (bad) to 4.644 (identical).

    Raises
    ------
    ScoreError : if PESQ finds no speech, gets less than 0.25 s, or crashes on long audio.
    ValueError : if the shapes differ or are not (T,).
    MissingPackageError : without ``pesq``.

    References
    ----------
    [1] ITU-T P.862.2, 2007, as computed by the package ``pesq`` 0.0.4.
    """
    package = load_package("pesq")
    ref_sig, hyp_sig = _speech_pair(ref_sig, hyp_sig, sample_rate=sample_rate)
    if not hyp_sig.any():  # PESQ's own answer is NaN
        raise ScoreError("PESQ has no value for decoded audio that is silent")
    if ref_sig.size > _PESQ_SAFE_SAMPLES:
        return _pesq_in_subprocess(ref_sig, hyp_sig)
    try:
        return float(package.pesq(SAMPLE_RATE, ref_sig, hyp_sig, "wb"))
    except package.PesqError as error:
        raise ScoreError(f"PESQ: {_pesq_reason(error)}") from error
    except ValueError as error:  # a NaN inside, which its wrapper cannot convert
        raise ScoreError(f"PESQ has no value here: {error}") from error


def mel_distance(
    ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int
) -> float:
    """Mean absolute difference of log-mel spectrograms.

    80 Slaney bands from 0 to 8 kHz of the magnitude STFT (FFT 1024, hop 320, Hann), natural
    logarithm with a floor of 1e-5. Needs no optional package.

    Parameters
    ----------
    ref_sig : (T,) original.
    hyp_sig : (T,) decoded.
    sample_rate : Hz, of both.

    Returns
    -------
    0 (identical) and up, in nepers.

    Raises
    ------
    ScoreError : if an utterance is empty or not finite.
    ValueError : if the shapes differ or are not (T,).
    """
    pair = torch.stack(_pair(ref_sig, hyp_sig, sample_rate=sample_rate))
    magnitude = spectrum(pair, n_fft=1024, hop_length=320).abs()
    log_mel = (magnitude @ mel_filters(1024, 80)).clamp_min(1e-5).log()
    return float((log_mel[0] - log_mel[1]).abs().mean())


def stft_distance(
    ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int
) -> float:
    """Distance of magnitude spectrograms at two resolutions, the STFT distance of codec papers.

    Windows of 2048 and 512 samples (Hann, hop a quarter of the window); for each the mean absolute
    difference of log10(max(|S|, 1e-5)^2) plus that of |S|; the sum over both windows. Needs no
    optional package.

    Parameters
    ----------
    ref_sig : (T,) original.
    hyp_sig : (T,) decoded.
    sample_rate : Hz, of both.

    Returns
    -------
    0 (identical) and up.

    Raises
    ------
    ScoreError : if an utterance is empty or not finite.
    ValueError : if the shapes differ or are not (T,).

    References
    ----------
    [1] Kumar et al., 2023, arXiv:2306.06546; windows, weights and floor as the defaults of
        MultiScaleSTFTLoss in descriptinc/descript-audio-codec, dac/nn/loss.py. There at 44.1 kHz,
        so its values do not compare with these.
    """
    pair = torch.stack(_pair(ref_sig, hyp_sig, sample_rate=sample_rate))
    distance = 0.0
    for window in (2048, 512):
        ref, hyp = spectrum(pair, n_fft=window, hop_length=window // 4).abs()
        log_ref, log_hyp = (2 * x.clamp_min(1e-5).log10() for x in (ref, hyp))
        distance += float((log_ref - log_hyp).abs().mean() + (ref - hyp).abs().mean())
    return distance


def _pair(
    ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int
) -> tuple[Tensor, Tensor]:
    if tuple(ref_sig.shape) != tuple(hyp_sig.shape):
        raise ValueError(
            "ref_sig and hyp_sig must have the same shape (T,), got "
            f"{tuple(ref_sig.shape)} and {tuple(hyp_sig.shape)}"
        )
    return to_16k(ref_sig, sample_rate=sample_rate), to_16k(hyp_sig, sample_rate=sample_rate)


def _speech_pair(
    ref_sig: Tensor | np.ndarray, hyp_sig: Tensor | np.ndarray, *, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """float64 arrays, the reference not silent: STOI would give 0 and PESQ divide by 0."""
    ref_sig, hyp_sig = _pair(ref_sig, hyp_sig, sample_rate=sample_rate)
    if not ref_sig.any():
        raise ScoreError("the reference is silent")
    return ref_sig.double().numpy(), hyp_sig.double().numpy()


# The package has room for 50 stretches of speech and checks nothing: more of them overwrite memory
# and kill the process. A stretch takes at least 0.2 s and so does the pause after it, so up to 20 s
# are safe in this process.
_PESQ_SAFE_SAMPLES = 20 * SAMPLE_RATE

_PESQ_PROGRAM = """
import sys
import numpy as np
from pesq import pesq
ref_sig, hyp_sig = np.frombuffer(sys.stdin.buffer.read()).reshape(2, -1)
print(pesq({sample_rate}, ref_sig, hyp_sig, "wb"))
"""


def _pesq_in_subprocess(ref_sig: np.ndarray, hyp_sig: np.ndarray) -> float:
    seconds = ref_sig.size / SAMPLE_RATE
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PESQ_PROGRAM.format(sample_rate=SAMPLE_RATE)],
            input=np.stack([ref_sig, hyp_sig]).tobytes(),
            capture_output=True,
            timeout=60 + seconds,  # many times what it takes: overwritten memory may also loop
        )
    except subprocess.TimeoutExpired as error:
        raise ScoreError(f"PESQ did not end on {seconds:.1f} s of audio") from error
    if done.returncode < 0:
        raise ScoreError(f"PESQ crashed on {seconds:.1f} s: more than 50 stretches of speech")
    if done.returncode > 0:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ScoreError(f"PESQ failed on {seconds:.1f} s: {last_line}")
    return float(done.stdout)


def _pesq_reason(error: Exception) -> str:
    reason = error.args[0] if error.args else type(error).__name__
    return reason.decode() if isinstance(reason, bytes) else str(reason)
