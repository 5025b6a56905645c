"""Scores of one utterance: each of its signals against the target, at 16 kHz."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from recipes.common.metrics import AudioMetrics
from recipes.common.score_models import ScoreModels
from recipes.common.scoring import SAMPLE_RATE, to_16k


class Scores(NamedTuple):
    """Scores by prefix and name, failures as [metric, reason], and what no utterance can have."""

    scores: dict[str, float]
    failures: list[list[str]]
    not_computed: dict[str, str]


class Scorer:
    """A set of metrics for every prefix (``hyp``, ``rec``, ``ref``, ``input``).

    Parameters
    ----------
    names : see `recipes.common.metrics.AudioMetrics`.
    models : networks behind the metrics.

    Raises
    ------
    ValueError : if a name is not known or a named model is no folder or hub id.
    """

    def __init__(self, names: Iterable[str], *, models: ScoreModels) -> None:
        self.names = list(names)
        self.models = models
        self._metrics: dict[str, AudioMetrics] = {}
        self._of("hyp")

    @property
    def missing(self) -> dict[str, str]:
        """Metrics whose package or weights are not here, with the reason."""
        return self._of("hyp").missing

    @property
    def model_lines(self) -> dict[str, str]:
        """What each metric was computed with: name and hash, by metric."""
        return self._of("hyp").models

    def score(
        self, id: str, target: Tensor, sigs: Mapping[str, Tensor], *, language: str
    ) -> Scores:
        """Score signals (T,) at 16 kHz against the target (T,)."""
        scores: dict[str, float] = {}
        failures: list[list[str]] = []
        for prefix, sig in sigs.items():
            metrics = self._of(prefix)
            metrics.clear()
            metrics.append([id], [target], [sig], languages=[language])
            (row,) = metrics.rows
            found = {f"{prefix}_{name}": row[name] for name in row if name != "id"}
            scores |= {name: value for name, value in found.items() if math.isfinite(value)}
            failures += [
                [name, f"is {value}"] for name, value in found.items() if not math.isfinite(value)
            ]
            failures += [[f"{prefix}_{f.metric}", f.reason] for f in metrics.failures]
        return Scores(scores, failures, self.missing)

    def _of(self, prefix: str) -> AudioMetrics:
        if prefix not in self._metrics:
            self._metrics[prefix] = AudioMetrics(
                names=self.names, sample_rate=SAMPLE_RATE, models=self.models
            )
        return self._metrics[prefix]


def at_16k(sig: Tensor, *, sample_rate: int, num_samples: int | None = None) -> Tensor:
    """Resample a signal (T,) to 16 kHz on the CPU, cut or zero-padded to ``num_samples``."""
    sig = to_16k(sig, sample_rate=sample_rate)
    if num_samples is None:
        return sig
    return pad(sig, (0, max(0, num_samples - sig.shape[0])))[:num_samples]
