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
from recipes.common.files import read_json, write_json, write_text


class Tested(NamedTuple):
    """One test: rows of its utterances, and what else its evaluation says.

    A row has ``id`` and scores; ``weights`` say by which column the mean of a score is weighted.
    ``settings`` tell two tests of one model apart; ``not_computed`` and ``models`` go by metric.
    ``hyp`` is the prefix of the audio that is tested, which an evaluation calls ``hyp``.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    weights: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}
    not_computed: Mapping[str, str] = {}
    models: Mapping[str, str] = {}
    failures: Sequence[Mapping[str, str]] = ()
    samples: Path | None = None  # folder with a folder for each utterance
    hyp: str = "hyp"


def write_evaluation(
    run_folder: Path,
    test: Tested,
    *,
    task: str,
    codec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    durations: Mapping[str, float],
    step: int,
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
    step : optimizer step of the model.
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
    if test.samples is not None:
        _copy_samples(test.samples, folder / "samples", hyp=test.hyp)
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
            "step": step,
            "settings": dict(test.settings),
            "models": dict(test.models),
            "scores": {name: interval._asdict() for name, interval in scored.items()},
            "not_computed": dict(test.not_computed),
            "failures": list(test.failures),
        },
    )


def remove_outdated(run_folder: Path, *, step: int) -> None:
    """Remove evaluations of other steps than this one, such as of a protocol no longer asked for.

    The run has gone on since, and a report would take them for its own.
    """
    for path in run_folder.glob("evaluation*/metrics.json"):
        if read_json(path).get("step", step) != step:  # one that was put there has none
            shutil.rmtree(path.parent)


def bitrate_of(codec: Mapping[str, Any]) -> float:
    """Bits per second of all codebooks together, of the description of a codec."""
    return codec["token_rate"] * codec["num_codebooks"] * math.log2(codec["codebook_size"])


def _copy_samples(samples: Path, folder: Path, *, hyp: str) -> None:
    """Copy what was tested and what it is compared with, as a report names and finds them."""
    shutil.rmtree(folder, ignore_errors=True)
    for kind, name in {"ref": "ref", "input": "input", hyp: "hyp"}.items():
        for path in samples.rglob(f"{kind}.wav"):
            utterance = folder / "--".join(path.parent.relative_to(samples).parts)
            utterance.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, utterance / f"{name}.wav")


def _table(rows: Sequence[Mapping[str, Any]], durations: Mapping[str, float]) -> str:
    """CSV text with a line for each row; an empty field where it has no such score."""
    text = io.StringIO()
    fields = dict.fromkeys(["id", "duration", *(key for row in rows for key in row)])
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"duration": durations.get(str(row["id"]), ""), **row} for row in rows)
    return text.getvalue()
