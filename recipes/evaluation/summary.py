"""From the rows of all utterances to ``metrics.json``, ``utterances.csv`` and ``code_counts.json``.

Every mean comes with its 95 % bootstrap interval over utterances. A metric that some utterance
could not have, because its package or weights were not on the machine, is not computed at all: a
mean over the others would be of another test set.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.codecs.codec import Codec
from recipes.common.bootstrap import mean_interval
from recipes.common.code_usage import CodeUsage
from recipes.common.files import write_json, write_text
from recipes.evaluation.rows import Row

WEIGHTS = {"dwer": "dwer_words", "dcer": "dcer_characters"}  # of a mean over utterances
ABOUT = ("duration", "speaker", "language")  # columns of the CSV that come from the manifest


def summarize(
    rows: Sequence[Row], manifest: Mapping[str, Mapping[str, Any]], *, codec: Codec, seed: int
) -> dict[str, Any]:
    """Scores, code usage, failures and what was not computed, as ``metrics.json`` has them.

    Parameters
    ----------
    rows : one an utterance, in the order of the manifest.
    manifest : test set by utterance id.
    codec : gives codebooks.
    seed : of the bootstrap.
    """
    not_computed: dict[str, str] = {}
    for row in rows:
        not_computed |= row.not_computed
    dropped = {name for row in rows for name in row.scores if _metric_in(name, not_computed)}
    names = dict.fromkeys(name for row in rows for name in row.scores if name not in dropped)
    weights = {name: _weight(name) for name in names}
    scores = {}
    for name in names:
        if name in weights.values():  # a weight is no score of its own
            continue
        scored = [row for row in rows if name in row.scores]
        interval = mean_interval(
            [row.scores[name] for row in scored],
            weights=[row.scores[weights[name]] for row in scored] if weights[name] else None,
            seed=seed,
        )
        scores[name] = {**interval._asdict(), "utterances": len(scored)}
    return {
        "scores": scores | real_time_factors(rows, manifest, seed=seed),
        "code_usage": usage(rows, codec).summarize(across_ranks=False),
        "not_computed": not_computed,
        "failures": [
            {"id": row.id, "metric": metric, "reason": reason}
            for row in rows
            for metric, reason in row.failures
        ],
    }


def real_time_factors(
    rows: Sequence[Row], manifest: Mapping[str, Mapping[str, Any]], *, seed: int
) -> dict[str, dict[str, float]]:
    """Seconds of audio per second of work: all audio over all work, with an interval."""
    factors = {}
    for step in dict.fromkeys(step for row in rows for step in row.seconds):
        seconds = [row.seconds[step] for row in rows]
        speeds = [
            manifest[row.id]["duration"] / took for row, took in zip(rows, seconds, strict=True)
        ]
        interval = mean_interval(speeds, weights=seconds, seed=seed)
        name = "rtf" if step == "total" else f"rtf_{step}"
        factors[name] = {**interval._asdict(), "utterances": len(rows)}
    return factors


def usage(rows: Iterable[Row], codec: Codec) -> CodeUsage:
    """Count the codes of all utterances."""
    counted = CodeUsage(codec.codebook_size, num_codebooks=codec.num_codebooks)
    for row in rows:
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
        num_toks = len(row.toks[0])
        writer.writerow({"id": row.id, **about, "num_toks": num_toks, **row.scores, **seconds})
    write_text(path, text.getvalue())


def write_counts(path: Path, counted: CodeUsage) -> None:
    """Write how often each code of each codebook occurred."""
    write_json(path, {"counts": counted.counts.tolist()})


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


def _weight(name: str) -> str | None:
    prefix, _, score = name.partition("_")
    return f"{prefix}_{WEIGHTS[score]}" if score in WEIGHTS else None


def _metric_in(name: str, metrics: Iterable[str]) -> bool:
    """Whether a score such as ``hyp_dnsmos_sig`` is one of these metrics'."""
    score = name.partition("_")[2]
    return any(f"{score}_".startswith(f"{metric}_") for metric in metrics)
