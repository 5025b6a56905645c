"""Which utterances of a validation or test are scored and written as audio, and what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from focalcodec.resampling import resample
from recipes.common.metrics import AudioMetrics
from recipes.common.run_log import RunLog
from recipes.common.score_models import DEFAULT_MODELS, ScoreModels


class Chosen(NamedTuple):
    """Utterances of one subset that are scored, and those that are written as audio."""

    scored: set[str]
    written: set[str]


class AudioScores:
    """Scores of decoded signals against their originals, by prefix.

    A prefix says what was decoded: ``rec`` from unquantized features, ``hyp`` from tokens, ``ref``
    nothing at all. The ranks of a distributed run decode the same utterances and share the scoring.

    Parameters
    ----------
    names : metrics, see `recipes.common.metrics.AudioMetrics`.
    sample_rate : at which signals are scored and written, in Hz.
    run_log : where audio is written.
    models : which models score, and where they run.

    Raises
    ------
    ValueError : if a name is not known.
    FileNotFoundError : if ``models`` names a folder that does not exist.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        sample_rate: int,
        run_log: RunLog,
        models: ScoreModels = DEFAULT_MODELS,
    ) -> None:
        self.names = list(names)
        self.sample_rate = sample_rate
        self.score_models = models
        self.run_log = run_log
        self.chosen: dict[str, Chosen] = {}
        self.metrics: dict[str, AudioMetrics] = {}
        # A misspelt metric or a missing package shows now; files may be gone when a training ends.
        self._models = self._metrics("rec").models if self.names else {}

    def choose(self, subset: str, ids: Sequence[str], *, scored: int, written: int) -> None:
        """Choose so many utterances of a subset, spread evenly over their order."""
        self.chosen[subset] = Chosen(evenly_spaced(ids, scored), evenly_spaced(ids, written))

    def clear(self) -> None:
        """Begin a validation or test."""
        self.metrics = {}

    def append(
        self,
        batch: Any,
        decoded: dict[str, Tensor],
        *,
        sample_rate: int,
        subset: str,
        step: int,
        with_ref: bool,
    ) -> None:
        """Score and write decoded signals (B, T') of at least the length of the batch's own.

        ``sample_rate`` (Hz) is that of ``decoded``; what is chosen is resampled. ``with_ref`` also
        scores the reference itself, the ceiling of metrics that need none.
        """
        sig, lens = batch.sig
        rates = {"sample_rate": sample_rate, "new_sample_rate": self.sample_rate}
        for row, utterance in enumerate(batch.id):
            if not self.is_chosen(utterance, subset=subset):
                continue
            size = round(float(lens[row]) * sig.shape[1])
            signals = {
                prefix: resample(rows[row].float().cpu(), **rates)[:size]
                for prefix, rows in decoded.items()
            }
            self.append_utterance(
                utterance,
                sig[row, :size].float().cpu(),
                signals,
                language=batch.language[row],
                subset=subset,
                step=step,
                with_ref=with_ref,
            )

    def is_chosen(self, utterance: str, *, subset: str) -> bool:
        """Whether an utterance is scored or written, so that it has to be decoded."""
        return any(utterance in chosen for chosen in self.chosen[subset])

    def append_utterance(
        self,
        utterance: str,
        ref_sig: Tensor,
        signals: Mapping[str, Tensor],
        *,
        language: str,
        subset: str,
        step: int,
        with_ref: bool,
        part: str = "",
    ) -> None:
        """Score and write signals (T',) of one utterance, on the CPU at the scores' rate.

        Parameters
        ----------
        utterance : its id; what is not chosen is left alone.
        ref_sig : (T,) original.
        signals : what was decoded, by prefix.
        language : what is spoken, ISO 639-1.
        subset, step, with_ref : as in `append`.
        part : which of several signals of the utterance it is, such as ``-1``.
        """
        scored, written = self.chosen[subset]
        for prefix, signal in {"ref": ref_sig, **signals}.items():
            if utterance in scored and (with_ref or prefix in signals):
                self._metrics(prefix).append(
                    [utterance + part], [ref_sig], [signal], languages=[language]
                )
            if utterance in written:
                self.run_log.audio(f"{subset}/{utterance}{part}/{prefix}", step, signal)

    def summarize(self) -> dict[str, Any]:
        """Means by prefix and score, over the utterances of all ranks; every rank has to call it.

        Reasons for what could not be computed are under ``not_computed``, and what the others were
        computed by under ``models``.
        """
        values: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for prefix, metrics in self.metrics.items():
            metrics.gather()
            values |= {f"{prefix}_{name}": value for name, value in metrics.summarize().items()}
            reasons |= metrics.not_computed
        models = {name: line for name, line in self._models.items() if name not in reasons}
        return values | {"not_computed": reasons, "models": models}

    def write_tables(self, folder: Path) -> None:
        """Write ``test_PREFIX.csv`` with a line for each utterance; on the main process."""
        if if_main_process():
            for prefix, metrics in self.metrics.items():
                metrics.write_csv(folder / f"test_{prefix}.csv")

    def _metrics(self, prefix: str) -> AudioMetrics:
        if prefix not in self.metrics:
            rank, size = 0, 1
            if torch.distributed.is_initialized():
                rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
            self.metrics[prefix] = AudioMetrics(
                names=self.names,
                sample_rate=self.sample_rate,
                rank=rank,
                world_size=size,
                models=self.score_models,
            )
        return self.metrics[prefix]


def evenly_spaced(ids: Sequence[str], number: int) -> set[str]:
    """Choose ``number`` ids, spread evenly over their order."""
    number = min(number, len(ids))
    return {ids[i * len(ids) // number] for i in range(number)}
