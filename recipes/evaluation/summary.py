"""From the rows of all utterances to ``metrics.json``, ``utterances.csv`` and ``code_counts.json``.

Every mean comes with its 95 % bootstrap interval over utterances. A metric that some utterance
could not have, because its package or weights were not on the machine, is not computed at all: a
mean over the others would be of another test set.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.codecs.codec import Codec
from recipes.common.bootstrap import Interval, mean_interval, row_intervals
from recipes.common.code_usage import CodeUsage
from recipes.common.files import write_text
from recipes.common.known_metrics import METRICS, WEIGHTS
from recipes.evaluation.rows import Row

PREFIXES = ("hyp", "rec", "ref", "input")
ABOUT = ("duration", "speaker", "language")  # columns of the CSV that come from the manifest


def summarize(
    rows: Sequence[Row],
    manifest: Mapping[str, Mapping[str, Any]],
    *,
    metrics: Iterable[str],
    codec: Codec,
    hardware: str,
    seed: int,
) -> dict[str, Any]:
    """Scores, code usage, failures and what was not computed, as ``metrics.json`` has them.

    Parameters
    ----------
    rows : one an utterance, in the order of the manifest.
    manifest : test set by utterance id.
    metrics : names of those that were asked for.
    codec : gives codebooks.
    hardware : of which rows the real-time factors are taken, if it made any.
    seed : of the bootstrap.
    """
    not_computed = failed_everywhere(rows, metrics)
    for row in rows:
        not_computed |= row.not_computed
    timed = [row for row in rows if row.hardware == hardware]
    if not timed:  # all was done elsewhere: on what most of it was done on
        used = Counter(row.hardware for row in rows if row.seconds)
        hardware = used.most_common(1)[0][0] if used else hardware
        timed = [row for row in rows if row.hardware == hardware]
    scores = [
        {name: value for name, value in row.scores.items() if _metric(name) not in not_computed}
        for row in rows
    ]
    weights = {
        f"{prefix}_{score}": f"{prefix}_{weight}"
        for prefix in PREFIXES
        for score, weight in WEIGHTS.items()
    }
    names = dict.fromkeys(name for row in scores for name in row)
    scored = [name for name in names if name not in weights.values()]
    means = row_intervals(scores, scored, weights=weights, seed=seed)
    counted = usage(rows, codec)
    return {
        "scores": {
            name: interval._asdict()
            for name, interval in {**means, **speed_intervals(timed, manifest, seed=seed)}.items()
        },
        **({} if counted is None else {"code_usage": counted.summarize(across_ranks=False)}),
        "rtf_hardware": hardware,
        "not_computed": not_computed,
        "failures": [
            {"id": row.id, "metric": metric, "reason": reason}
            for row in rows
            for metric, reason in row.failures
        ],
    }


def failed_everywhere(rows: Iterable[Row], metrics: Iterable[str]) -> dict[str, str]:
    """Say of each metric that could score no output why it could not score the first."""
    rows = [row for row in rows if row.seconds]
    reasons = {}
    for metric in metrics:
        scores = {f"hyp_{score}" for score in METRICS[metric].scores}
        failed = [
            (row.id, reason)
            for row in rows
            for what, reason in row.failures
            if what in ("hyp", f"hyp_{metric}")
        ]
        if failed and not any(scores & row.scores.keys() for row in rows):
            id, reason = failed[0]
            reasons[metric] = f"none of {len(rows)} utterances could be scored; {id}: {reason}"
    return reasons


def speed_intervals(
    rows: Sequence[Row], manifest: Mapping[str, Mapping[str, Any]], *, seed: int
) -> dict[str, Interval]:
    """Seconds of audio per second of work: all audio over all work, with an interval."""
    factors = {}
    for step in dict.fromkeys(step for row in rows for step in row.seconds):
        timed = [row for row in rows if step in row.seconds]
        seconds = [row.seconds[step] for row in timed]
        speeds = [manifest[row.id]["duration"] / row.seconds[step] for row in timed]
        name = "rtf" if step == "total" else f"rtf_{step}"
        factors[name] = mean_interval(speeds, weights=seconds, seed=seed)
    return factors


def usage(rows: Iterable[Row], codec: Codec) -> CodeUsage | None:
    """Count the codes of all utterances; None where a task sends none."""
    counted = None
    for row in rows:
        if row.toks:
            counted = counted or CodeUsage(codec.codebook_size, num_codebooks=codec.num_codebooks)
            counted.append(torch.tensor(row.toks).t()[None])
    return counted


def write_table(path: Path, rows: Sequence[Row], manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Write one line an utterance; an empty field where it has no such score."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    steps = list(dict.fromkeys(step for row in rows for step in row.seconds))
    text = io.StringIO()
    fields = ["id", *ABOUT, "num_toks", *names, *(f"seconds_{step}" for step in steps)]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        about = {key: manifest[row.id].get(key, "") for key in ABOUT}
        about["language"] = about["language"] or "en"
        seconds = {f"seconds_{step}": took for step, took in row.seconds.items()}
        num_toks = len(row.toks[0]) if row.toks else ""
        writer.writerow({"id": row.id, **about, "num_toks": num_toks, **row.scores, **seconds})
    write_text(path, text.getvalue())


def describe(codec: Codec) -> dict[str, Any]:
    """Facts about a codec for ``metrics.json``."""
    return {
        "name": codec.name,
        "model_id": codec.model_id,
        "sample_rate": codec.sample_rate,
        "sample_rate_output": codec.sample_rate_output,
        "token_rate": codec.token_rate,
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
        "bitrate": codec.bitrate,
        "embedding_dim": codec.embeddings().shape[-1],
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
    }


def _metric(name: str) -> str:
    """Metric that gave ``hyp_dnsmos_sig``, for one, or the weight ``hyp_dwer_words``."""
    score = name.partition("_")[2]
    return next(
        metric
        for metric, known in METRICS.items()
        if score in known.scores or score in (WEIGHTS.get(own) for own in known.scores)
    )
