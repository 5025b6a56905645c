"""The audio scores by name: what computes them, what they need, what they depend on.

The functions themselves are in `recipes.common.reference_scores` (STOI, PESQ, distances),
`recipes.common.dnsmos`, `recipes.common.utmos`, `recipes.common.transcripts` (dWER, dCER) and
`recipes.common.speaker_similarity`.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from recipes.common import transcripts, utmos
from recipes.common.dnsmos import describe_dnsmos, dnsmos, models_folder
from recipes.common.reference_scores import mel_distance, pesq, stft_distance, stoi
from recipes.common.score_models import ScoreModels
from recipes.common.scoring import (
    MissingPackageError,
    MissingWeightsError,
    load_package,
    package_versions,
)
from recipes.common.speaker_similarity import (
    describe_speaker_model,
    find_speaker_model,
    load_speaker_model,
    speaker_similarity,
)

logger = logging.getLogger(__name__)

# A mean of these is weighted by a column beside them, so that it is edits over words of all
# utterances together, as a word error rate is.
WEIGHTS = {"dwer": "dwer_words", "dcer": "dcer_characters"}


class Task(NamedTuple):
    """What a score may depend on beside the two signals."""

    sample_rate: int
    language: str
    models: ScoreModels


class Metric(NamedTuple):
    """One name of `recipes.common.metrics.AudioMetrics`, and the scores that it gives."""

    compute: Callable[[Tensor, Tensor, Task], dict[str, float]]  # of ref_sig and hyp_sig
    scores: tuple[str, ...]
    packages: tuple[str, ...] = ()
    find: Callable[[ScoreModels], object] | None = None  # its weights, before anything is scored
    describe: Callable[[ScoreModels], str] | None = None
    is_aligned: bool = False  # compares sample by sample


def _aligned(score: Callable[..., float], name: str, *packages: str) -> Metric:
    def compute(ref_sig: Tensor, hyp_sig: Tensor, task: Task) -> dict[str, float]:
        return {name: score(ref_sig, hyp_sig, sample_rate=task.sample_rate)}

    return Metric(
        compute,
        (name,),
        packages,
        describe=(lambda _: package_versions(*packages)) if packages else None,
        is_aligned=True,
    )


def _similarity(name: str, field: str) -> Metric:
    def compute(ref_sig: Tensor, hyp_sig: Tensor, task: Task) -> dict[str, float]:
        source = getattr(task.models, field)
        model = load_speaker_model(source, field=field, device=task.models.device)
        score = speaker_similarity(ref_sig, hyp_sig, sample_rate=task.sample_rate, model=model)
        return {name: score}

    return Metric(
        compute,
        (name,),
        ("transformers",),
        find=lambda models: find_speaker_model(getattr(models, field), field=field),
        describe=lambda models: describe_speaker_model(getattr(models, field), field=field),
    )


def _compute_dnsmos(ref_sig: Tensor, hyp_sig: Tensor, task: Task) -> dict[str, float]:
    scores = dnsmos(hyp_sig, sample_rate=task.sample_rate)
    return {f"dnsmos_{name}": score for name, score in scores._asdict().items()}


def _compute_utmos(ref_sig: Tensor, hyp_sig: Tensor, task: Task) -> dict[str, float]:
    model = utmos.load_utmos(task.models.utmos, device=task.models.device)
    return {"utmos": utmos.utmos(hyp_sig, sample_rate=task.sample_rate, model=model)}


def _compute_dwer(ref_sig: Tensor, hyp_sig: Tensor, task: Task) -> dict[str, float]:
    errors = transcripts.dwer(
        ref_sig,
        hyp_sig,
        sample_rate=task.sample_rate,
        transcriber=transcripts.load_transcriber(task.models.asr, device=task.models.device),
        language=task.language,
    )
    return {
        "dwer": errors.dwer,
        "dcer": errors.dcer,
        WEIGHTS["dwer"]: errors.words,
        WEIGHTS["dcer"]: errors.characters,
    }


METRICS = {
    "utmos": Metric(
        _compute_utmos,
        ("utmos",),
        find=lambda models: utmos.find_utmos(models.utmos),
        describe=lambda models: utmos.describe_utmos(models.utmos),
    ),
    "dnsmos": Metric(
        _compute_dnsmos,
        ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808"),
        ("onnxruntime", "speechmos"),
        describe=lambda _: describe_dnsmos(),
    ),
    "dwer": Metric(
        _compute_dwer,
        ("dwer", "dcer"),
        ("transformers", "jiwer"),
        find=lambda models: transcripts.find_transcriber(models.asr),
        describe=lambda models: transcripts.describe_transcriber(models.asr),
    ),
    "sim": _similarity("sim", "speaker"),
    "sim_strict": _similarity("sim_strict", "speaker_strict"),
    "pesq": _aligned(pesq, "pesq", "pesq"),
    "stoi": _aligned(stoi, "stoi", "pystoi"),
    "mel_distance": _aligned(mel_distance, "mel_distance"),
    "stft_distance": _aligned(stft_distance, "stft_distance"),
}


def why_missing(name: str, models: ScoreModels) -> str | None:
    """One line for what a metric lacks, a package or else weights, logged once a process."""
    metric = METRICS[name]
    try:
        for package in metric.packages:
            models_folder() if package == "speechmos" else load_package(package)
        if metric.find is not None:
            metric.find(models)
    except (MissingPackageError, MissingWeightsError) as error:
        return log_missing(name, error)
    return None


def log_missing(metric: str, error: Exception) -> str:
    """Warn that a metric is not computed, once a process; the reason is returned."""
    _warn_once(f"{metric} is not computed: {error}")
    return str(error)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
