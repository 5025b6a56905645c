"""The test of a task as an evaluation: what ``python -m recipes.report`` reads beside the others.

A run folder receives ``NAME/metrics.json``, ``utterances.csv`` and the samples that were written.
"""

import csv
import hashlib
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.bootstrap import row_intervals
from recipes.common.files import write_json, write_text


class Tested(NamedTuple):
    """One test: rows of its utterances, and what else its evaluation says.

    A row has ``id`` and scores; ``weights`` say by which column the mean of a score is weighted.
    ``settings`` tell two tests of one model apart; ``not_computed`` and ``models`` go by metric.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    weights: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}
    not_computed: Mapping[str, str] = {}
    models: Mapping[str, str] = {}
    failures: Sequence[Mapping[str, str]] = ()
    samples: Path | None = None  # folder with a folder for each utterance


def write_evaluation(
    run_folder: Path,
    test: Tested,
    *,
    task: str,
    codec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    durations: Mapping[str, float],
    seed: int,
) -> None:
    """Write a test of a run as an evaluation; ``metrics.json``, the sign of the end, last.

    Parameters
    ----------
    run_folder : of the training.
    test : rows and all.
    task : its name.
    codec : description of the tokens' codec.
    dataset : ``name`` and ``options`` of the dataset block.
    durations : seconds, by utterance id, of all that was tested.
    seed : of the bootstrap.
    """
    folder = run_folder / test.name
    folder.mkdir(exist_ok=True)
    columns = set(test.weights.values())
    names = dict.fromkeys(
        key
        for row in test.rows
        for key, value in row.items()
        if isinstance(value, int | float) and key not in columns
    )
    scored = row_intervals(test.rows, list(names), weights=test.weights, seed=seed)
    write_text(folder / "utterances.csv", _table(test.rows, durations))
    if test.samples is not None and test.samples.is_dir():
        shutil.copytree(test.samples, folder / "samples", dirs_exist_ok=True)
    ids = json.dumps(sorted(durations.items()))
    write_json(
        folder / "metrics.json",
        {
            "task": task,
            "codec": {**codec, "bitrate": bitrate_of(codec)},
            "dataset": {
                **dataset,
                "hash": hashlib.sha256(ids.encode()).hexdigest()[:16],
                "utterances": len(durations),
                "hours": sum(durations.values()) / 3600,
            },
            "settings": dict(test.settings),
            "models": dict(test.models),
            "scores": {name: interval._asdict() for name, interval in scored.items()},
            "not_computed": dict(test.not_computed),
            "failures": list(test.failures),
        },
    )


def bitrate_of(codec: Mapping[str, Any]) -> float:
    """Bits per second of all codebooks together, of the description of a codec."""
    return codec["token_rate"] * codec["num_codebooks"] * math.log2(codec["codebook_size"])


def _table(rows: Sequence[Mapping[str, Any]], durations: Mapping[str, float]) -> str:
    """CSV text with a line for each row; an empty field where it has no such score."""
    text = io.StringIO()
    fields = dict.fromkeys(["id", "duration", *(key for row in rows for key in row)])
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"duration": durations.get(str(row["id"]), ""), **row} for row in rows)
    return text.getvalue()
