"""A set of audio scores over the utterances of one evaluation, with what they were computed by.

Every score is a pure function of one unpadded utterance (`recipes.common.known_metrics` lists
them), so padding can never change it. All are taken at 16 kHz: other sample rates are resampled by
one fixed resampler, and samples beyond [-1, 1] are scored as they are, neither clipped nor
rescaled. Packages and weights are optional; what is missing is reported, never replaced by a
number.
"""

import csv
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.utils.metric_stats import MetricStats
from torch import Tensor

from focalcodec.masking import num_valid
from recipes.common.known_metrics import METRICS, WEIGHTS, Task, log_missing, why_missing
from recipes.common.score_models import DEFAULT_MODELS, ScoreModels
from recipes.common.scoring import RESAMPLER, MissingWeightsError, ScoreError, package_versions


class Failure(NamedTuple):
    """An utterance that a metric could not score."""

    id: str
    metric: str
    reason: str


class AudioMetrics:
    """A set of audio metrics over the utterances of one evaluation, each with its `MetricStats`.

    A metric whose package or weights are missing, and an utterance that a metric cannot score,
    never stop the run: the first is listed in `not_computed`, the second in `failures` and left out
    of that metric's mean. Ranks that are all given the same utterances score each a part of them,
    until `gather` joins the parts.

    Models are loaded when the first utterance is scored, once a process, and shared by all
    instances. What they make of a signal is remembered by its samples: a target is transcribed once
    for all prefixes, and dWER 0 and similarity 1 of a target against itself cost nothing more.

    Parameters
    ----------
    names : any of ``utmos``, ``dnsmos``, ``dwer``, ``sim``, ``sim_strict``, ``pesq``, ``stoi``,
        ``mel_distance``, ``stft_distance``; ``dwer`` also gives dCER.
    sample_rate : Hz, of all audio that is appended.
    rank, world_size : this process, and how many share the utterances.
    models : which models score, and where they run.

    Attributes
    ----------
    stats : dict from score name to its `MetricStats`.
    failures : list of `Failure`, in the order of appending.

    Raises
    ------
    ValueError : if a name is not known.
    FileNotFoundError : if ``models`` names a folder that does not exist.
    """

    def __init__(
        self,
        *,
        names: Iterable[str],
        sample_rate: int,
        rank: int = 0,
        world_size: int = 1,
        models: ScoreModels = DEFAULT_MODELS,
    ):
        self.names = list(dict.fromkeys(names))
        self.sample_rate = sample_rate
        self.rank, self.world_size = rank, world_size
        self.score_models = models
        if unknown := [name for name in self.names if name not in METRICS]:
            raise ValueError(f"unknown metrics {unknown}; known are {sorted(METRICS)}")
        self._missing = {
            name: reason for name in self.names if (reason := why_missing(name, models))
        }
        self.clear()

    def clear(self) -> None:
        """Forget every utterance."""
        to_scores = functools.partial(torch.tensor, dtype=torch.float64)
        scores = [score for name in self._available for score in METRICS[name].scores]
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
        languages: Sequence[str] | None = None,
    ) -> None:
        """Score a batch, one utterance at a time.

        Parameters
        ----------
        ids : B names of utterances.
        ref_sig : (B, T) targets, or B tensors of any lengths.
        hyp_sig : the decoded audio, as many samples as the targets; of any length where no metric
            compares sample by sample (``stoi``, ``pesq``, ``mel_distance``, ``stft_distance``).
        lens : (B,) relative lengths in (0, 1] of (B, T) audio; None where nothing is padded.
        languages : B codes of what is spoken, ISO 639-1; None where all of it is English.

        Raises
        ------
        ValueError : if ids, languages, targets and decoded audio do not match in number or shape;
            before any of them is scored.
        """
        if lens is not None and isinstance(ref_sig, Tensor) and isinstance(hyp_sig, Tensor):
            if ref_sig.shape != hyp_sig.shape:
                raise ValueError(
                    "lens are fractions of one same length, got ref_sig "
                    f"{tuple(ref_sig.shape)} and hyp_sig {tuple(hyp_sig.shape)}; give lists of "
                    "utterances without padding"
                )
        refs = _unpadded_rows(ref_sig, lens=lens)
        hyps = _unpadded_rows(hyp_sig, lens=lens)
        languages = ["en"] * len(ids) if languages is None else languages
        if not len(ids) == len(refs) == len(hyps) == len(languages):
            raise ValueError(
                "ids, ref_sig, hyp_sig and languages must hold as many utterances each, "
                f"got {len(ids)}, {len(refs)}, {len(hyps)} and {len(languages)}"
            )
        utterances = [*zip(map(str, ids), refs, hyps, languages, strict=True)]
        for utterance_id, ref, hyp, _ in utterances:
            self._check_aligned(utterance_id, ref, hyp)
        for utterance in utterances:
            if self._num_appended % self.world_size == self.rank:
                self._append_utterance(*utterance)
            self._num_appended += 1

    def gather(self) -> None:
        """Join the ranks' scores, in the order of the utterances; every rank has to call it."""
        if self.world_size == 1:
            return
        ranks: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(ranks, (self._rows, self.failures, self._missing))
        number = self._num_appended
        for _, _, missing in ranks:  # what one rank could not load has no mean over all
            self._missing |= missing
        self.clear()
        self._num_appended = number
        for position in range(number):
            rows = ranks[position % self.world_size][0]
            self._add_row(rows[position // self.world_size])
        self.failures = [failure for _, failures, _ in ranks for failure in failures]

    def summarize(self) -> dict[str, float]:
        """Mean of every score over the utterances that have it.

        Returns
        -------
        Flat dict from score name to mean; that of a score in `WEIGHTS` is weighted. Scores that no
        utterance has are absent (`not_computed` says why); the dict is empty if nothing was
        appended.
        """
        return {score: self._mean(score) for score, stats in self.stats.items() if stats.scores}

    @property
    def missing(self) -> dict[str, str]:
        """Metrics that no utterance can have on this machine, with what they lack."""
        return dict(self._missing)

    @property
    def rows(self) -> list[dict[str, str | float]]:
        """Scores by utterance: ``id`` and, as far as it has them, scores and their weights."""
        return [dict(row) for row in self._rows]

    @property
    def models(self) -> dict[str, str]:
        """What scores depend on beside the audio: one line of models and packages by metric.

        ``resampler`` is that of all audio which does not come at 16 kHz.
        """
        lines = {
            name: METRICS[name].describe(self.score_models)
            for name in self._available
            if METRICS[name].describe is not None
        }
        settings = ", ".join(f"{key} {value}" for key, value in RESAMPLER.items())
        return lines | {"resampler": f"{package_versions('torchaudio')}, {settings}"}

    @property
    def not_computed(self) -> dict[str, str]:
        """Why a metric is not in the summary: no package, or no utterance that it could score."""
        failed = {}
        for name in self._available:
            if self._rows and not any(self.stats[score].scores for score in METRICS[name].scores):
                first = next(failure for failure in self.failures if failure.metric == name)
                failed[name] = (
                    f"none of {len(self._rows)} utterances could be scored; "
                    f"{first.id}: {first.reason}"
                )
        return self._missing | failed

    def write_csv(self, path: str | Path) -> None:
        """Write one line per utterance: its id and scores; an empty field where it has no score."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._columns)
            writer.writeheader()
            writer.writerows(self._rows)

    @property
    def _available(self) -> list[str]:
        return [name for name in self.names if name not in self._missing]

    @property
    def _columns(self) -> list[str]:
        weighted = [
            [score, WEIGHTS[score]] if score in WEIGHTS else [score] for score in self.stats
        ]
        return ["id", *itertools.chain.from_iterable(weighted)]

    def _mean(self, score: str) -> float:
        if score not in WEIGHTS:
            return self.stats[score].summarize("average")
        weighted = [(row[score], row[WEIGHTS[score]]) for row in self._rows if score in row]
        total = sum(weight for _, weight in weighted)
        return math.fsum(value * weight for value, weight in weighted) / total

    def _check_aligned(self, utterance_id: str, ref: Tensor, hyp: Tensor) -> None:
        aligned = [name for name in self.names if METRICS[name].is_aligned]
        if aligned and ref.shape != hyp.shape:
            raise ValueError(
                f"{utterance_id}: ref_sig and hyp_sig must have the same number of samples for "
                f"{', '.join(aligned)}, got {tuple(ref.shape)} and {tuple(hyp.shape)}; cut the "
                "decoded audio to its original, or leave these metrics out where it says another "
                "sentence"
            )

    def _append_utterance(self, utterance_id: str, ref: Tensor, hyp: Tensor, language: str) -> None:
        ref, hyp = ref.detach().cpu(), hyp.detach().cpu()
        row: dict[str, str | float] = {"id": utterance_id}
        task = Task(self.sample_rate, language, self.score_models)
        for name in self._available:
            try:
                row |= METRICS[name].compute(ref, hyp, task)
            except ScoreError as error:
                self.failures.append(Failure(utterance_id, name, str(error)))
            except MissingWeightsError as error:  # they are there, but do not load
                self._missing[name] = log_missing(name, error)
                for score in METRICS[name].scores:
                    del self.stats[score]
                self._rows = [self._kept(earlier) for earlier in self._rows]
        self._add_row(row)

    def _add_row(self, row: dict[str, str | float]) -> None:
        for score, stats in self.stats.items():
            if score in row:
                stats.append([row["id"]], [row[score]])
        self._rows.append(self._kept(row))

    def _kept(self, row: dict[str, str | float]) -> dict[str, str | float]:
        """Leave out the scores, and their weights, of metrics that turned out missing."""
        return {key: value for key, value in row.items() if key in self._columns}


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
