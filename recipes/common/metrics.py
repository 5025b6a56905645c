"""Scores of decoded audio, most of them against its original.

Every score is a pure function of one unpadded utterance, so padding can never change it;
`AudioMetrics` applies a chosen set of them to batches and averages over utterances. All audio
scores are taken at 16 kHz: other sample rates are resampled by one fixed resampler, and samples
beyond [-1, 1] are scored as they are, neither clipped nor rescaled. The packages behind STOI, PESQ
and DNSMOS are optional; what is missing is reported, never replaced by a number.
"""

import csv
import functools
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from speechbrain.utils.metric_stats import MetricStats
from torch import Tensor

from focalcodec.masking import num_valid
from recipes.common.dnsmos import dnsmos, models_folder
from recipes.common.scoring import (
    SAMPLE_RATE,
    MissingPackageError,
    ScoreError,
    load_package,
    mel_filters,
    spectrum,
    to_16k,
)

logger = logging.getLogger(__name__)


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


class Failure(NamedTuple):
    """An utterance that a metric could not score."""

    id: str
    metric: str
    reason: str


class AudioMetrics:
    """A set of audio metrics over the utterances of one evaluation, each with its `MetricStats`.

    A metric whose package is missing, and an utterance that a metric cannot score, never stop the
    run: the first is listed in `not_computed`, the second in `failures` and left out of that
    metric's mean. Ranks that are all given the same utterances score each a part of them, until
    `gather` joins the parts.

    Parameters
    ----------
    names : any of ``stoi``, ``pesq``, ``dnsmos``, ``mel_distance``.
    sample_rate : Hz, of all audio that is appended.
    rank, world_size : this process, and how many share the utterances.

    Attributes
    ----------
    stats : dict from score name to its `MetricStats`.
    failures : list of `Failure`, in the order of appending.

    Raises
    ------
    ValueError : if a name is not known.
    """

    def __init__(
        self, *, names: Iterable[str], sample_rate: int, rank: int = 0, world_size: int = 1
    ):
        self.names = list(dict.fromkeys(names))
        self.sample_rate = sample_rate
        self.rank, self.world_size = rank, world_size
        if unknown := [name for name in self.names if name not in _METRICS]:
            raise ValueError(f"unknown metrics {unknown}; known are {sorted(_METRICS)}")
        self._missing = {name: reason for name in self.names if (reason := _why_missing(name))}
        self.clear()

    def clear(self) -> None:
        """Forget every utterance."""
        to_scores = functools.partial(torch.tensor, dtype=torch.float64)
        scores = [score for name in self._available for score in _METRICS[name].scores]
        self.stats = {score: MetricStats(metric=to_scores) for score in scores}
        self.failures: list[Failure] = []
        self._rows: list[dict[str, str | float]] = []
        self._num_appended = 0

    def append(
        self,
        ids: Sequence[str],
        ref_sig: Tensor | Sequence[Tensor],
        hyp_sig: Tensor | Sequence[Tensor],
        *,
        lens: Tensor | None = None,
    ) -> None:
        """Score a batch, one utterance at a time.

        Parameters
        ----------
        ids : B names of utterances.
        ref_sig : (B, T) originals, or B tensors of any lengths.
        hyp_sig : the decoded audio, as many samples as the originals.
        lens : (B,) relative lengths in (0, 1] of (B, T) audio; None where nothing is padded.

        Raises
        ------
        ValueError : if ids, originals and decoded audio do not match in number or shape.
        """
        refs = _unpadded_rows(ref_sig, lens=lens)
        hyps = _unpadded_rows(hyp_sig, lens=lens)
        if not len(ids) == len(refs) == len(hyps):
            raise ValueError(
                f"ids, ref_sig and hyp_sig must hold as many utterances each, "
                f"got {len(ids)}, {len(refs)} and {len(hyps)}"
            )
        for utterance_id, ref, hyp in zip(ids, refs, hyps, strict=True):
            if self._num_appended % self.world_size == self.rank:
                self._append_utterance(str(utterance_id), ref, hyp)
            self._num_appended += 1

    def gather(self) -> None:
        """Join the ranks' scores, in the order of the utterances; every rank has to call it."""
        if self.world_size == 1:
            return
        ranks: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(ranks, (self._rows, self.failures))
        number = self._num_appended
        self.clear()
        self._num_appended = number
        for position in range(number):
            rows, _ = ranks[position % self.world_size]
            self._add_row(rows[position // self.world_size])
        self.failures = [failure for _, failures in ranks for failure in failures]

    def summarize(self) -> dict[str, float]:
        """Mean of every score over the utterances that have it.

        Returns
        -------
        Flat dict from score name to mean. Scores that no utterance has are absent (`not_computed`
        says why); the dict is empty if nothing was appended.
        """
        return {
            score: stats.summarize("average") for score, stats in self.stats.items() if stats.scores
        }

    @property
    def not_computed(self) -> dict[str, str]:
        """Why a metric is not in the summary: no package, or no utterance that it could score."""
        failed = {}
        for name in self._available:
            if self._rows and not any(self.stats[score].scores for score in _METRICS[name].scores):
                first = next(failure for failure in self.failures if failure.metric == name)
                failed[name] = (
                    f"none of {len(self._rows)} utterances could be scored; "
                    f"{first.id}: {first.reason}"
                )
        return self._missing | failed

    def write_csv(self, path: str | Path) -> None:
        """Write one line per utterance: its id and scores; an empty field where it has no score."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=["id", *self.stats])
            writer.writeheader()
            writer.writerows(self._rows)

    @property
    def _available(self) -> list[str]:
        return [name for name in self.names if name not in self._missing]

    def _append_utterance(self, utterance_id: str, ref: Tensor, hyp: Tensor) -> None:
        if ref.shape != hyp.shape:
            raise ValueError(
                f"{utterance_id}: ref_sig and hyp_sig must have the same number of samples, got "
                f"{tuple(ref.shape)} and {tuple(hyp.shape)}; cut the decoded audio to its original"
            )
        ref, hyp = ref.detach().cpu(), hyp.detach().cpu()
        row: dict[str, str | float] = {"id": utterance_id}
        for name in self._available:
            try:
                row |= _METRICS[name].compute(ref, hyp, sample_rate=self.sample_rate)
            except ScoreError as error:
                self.failures.append(Failure(utterance_id, name, str(error)))
        self._add_row(row)

    def _add_row(self, row: dict[str, str | float]) -> None:
        for score, stats in self.stats.items():
            if score in row:
                stats.append([row["id"]], [row[score]])
        self._rows.append(row)


class _Metric(NamedTuple):
    compute: Callable[..., dict[str, float]]  # (ref_sig, hyp_sig, *, sample_rate) -> its scores
    scores: tuple[str, ...]
    packages: tuple[str, ...] = ()


def _compute_dnsmos(ref_sig: Tensor, hyp_sig: Tensor, *, sample_rate: int) -> dict[str, float]:
    scores = dnsmos(hyp_sig, sample_rate=sample_rate)
    return {f"dnsmos_{name}": score for name, score in scores._asdict().items()}


_METRICS = {
    "stoi": _Metric(lambda *sigs, **rate: {"stoi": stoi(*sigs, **rate)}, ("stoi",), ("pystoi",)),
    "pesq": _Metric(lambda *sigs, **rate: {"pesq": pesq(*sigs, **rate)}, ("pesq",), ("pesq",)),
    "dnsmos": _Metric(
        _compute_dnsmos,
        ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808"),
        ("onnxruntime", "speechmos"),
    ),
    "mel_distance": _Metric(
        lambda *sigs, **rate: {"mel_distance": mel_distance(*sigs, **rate)}, ("mel_distance",)
    ),
}


def _why_missing(metric: str) -> str | None:
    """One line for the first package of a metric that is missing, logged once a process."""
    try:
        for package in _METRICS[metric].packages:
            models_folder() if package == "speechmos" else load_package(package)
    except MissingPackageError as error:
        _warn_once(f"{metric} is not computed: {error}")
        return str(error)
    return None


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


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


def _unpadded_rows(sig: Tensor | Sequence[Tensor], *, lens: Tensor | None) -> list[Tensor]:
    if not isinstance(sig, Tensor):
        if lens is not None:
            raise ValueError("lens goes with (B, T) audio; a list of utterances has no padding")
        return list(sig)
    if sig.ndim != 2:
        raise ValueError(f"audio must be (B, T) or a list of (T,), got {tuple(sig.shape)}")
    if lens is None:
        return list(sig)
    if lens.shape != sig.shape[:1]:
        raise ValueError(f"lens must be ({len(sig)},), got {tuple(lens.shape)}")
    return [row[:n] for row, n in zip(sig, num_valid(lens, sig.shape[1]).tolist(), strict=True)]


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
