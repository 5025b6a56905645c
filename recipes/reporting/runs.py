"""Run folders that a report is made of: evaluations, and trainings for their curves.

An evaluation is a folder whose ``metrics.json`` has a ``task``; a training is one with
``steps.jsonl``, and that of a downstream task has its evaluations in folders of its own
(``evaluation``, ``evaluation_paper``). Everything is only read.
"""

import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.files import read_json
from recipes.common.known_metrics import WEIGHTS
from recipes.common.plots import read_steps
from recipes.common.run_folder import read_description
from recipes.common.run_origin import RunFiles, Start, starts_of

AUDIO = ("input", "reference", "ref", "hyp", "rec")


class Score(NamedTuple):
    """Mean of a score and its 95 % interval, in the run's units; ``low`` may be unknown."""

    mean: float
    low: float | None = None
    high: float | None = None
    utterances: int | None = None


class EvaluatedSet(NamedTuple):
    """A task on utterances: those of one name and, where runs recorded it, of one manifest."""

    task: str
    name: str | None
    hash: str | None


class Evaluation(NamedTuple):
    """What the folder of one evaluation says.

    ``scores`` goes by full names (``hyp_utmos``) and holds finite means alone; ``failures`` have
    ``id``, ``metric`` and ``reason``.
    """

    folder: Path
    task: str
    codec: dict[str, Any]
    dataset: dict[str, Any]
    scores: dict[str, Score]
    code_usage: dict[str, Any]
    settings: dict[str, Any]
    models: dict[str, str]
    not_computed: dict[str, str]
    failures: list[dict[str, Any]]
    starts: list[Start]

    @property
    def codec_name(self) -> str:
        """Name of the codec, as the run gives it."""
        return str(self.codec["name"])

    @property
    def dataset_name(self) -> str | None:
        """Name of the test set; None of a task without one."""
        name = self.dataset.get("name")
        return None if name is None else str(name)

    @property
    def test_set(self) -> EvaluatedSet:
        """What it was evaluated on: equal for runs whose utterances may be paired."""
        return EvaluatedSet(self.task, self.dataset_name, self.dataset.get("hash"))

    def samples(self) -> dict[str, dict[str, Path]]:
        """Audio files by utterance id, then by kind (of `AUDIO`), in the order of ids."""
        found = {}
        ids = {str(row["id"]).replace("/", "--"): str(row["id"]) for row in self.utterances()}
        for folder in sorted((self.folder / "samples").glob("*/")):
            files = {kind: folder / f"{kind}.wav" for kind in AUDIO}
            files = {kind: path for kind, path in files.items() if path.is_file()}
            if files:
                found[ids.get(folder.name, folder.name)] = files
        return found

    def utterances(self) -> list[dict[str, Any]]:
        """Rows of ``utterances.csv``: ``id``, and all columns that hold a number, as a number.

        Raises
        ------
        ValueError : if the file has no ids, or a score without the weight of its mean; names the
            column.
        """
        path = self.folder / "utterances.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if "id" not in (table.fieldnames or ()):
                raise ValueError(f"{path} has no column id")
            rows = [{**_numbers(row), "id": row["id"]} for row in table]
        for row in rows:
            _check_weights(row, path)
        return rows

    def code_counts(self) -> list[list[int]] | None:
        """How often each code was used, by codebook; None if the run did not count.

        Raises
        ------
        ValueError : if the file is damaged.
        """
        path = self.folder / "code_counts.json"
        if not path.is_file():
            return None
        counts = read_json(path).get("counts")
        if not isinstance(counts, list) or not all(isinstance(book, list) for book in counts):
            raise ValueError(f"{path}: counts must be a list of lists, one a codebook")
        for number, book in enumerate(counts):
            for count in book:
                if type(count) is not int or count < 0:
                    raise ValueError(
                        f"{path}: counts[{number}] must hold whole numbers from 0, got {count!r}"
                    )
        return counts


class Training(NamedTuple):
    """Folder of a training and the entries of its ``steps.jsonl``."""

    folder: Path
    steps: list[dict[str, Any]]


class FoundRuns(NamedTuple):
    """Evaluations, trainings, and what was left out: folder and reason."""

    evaluations: list[Evaluation]
    trainings: list[Training]
    left_out: list[tuple[Path, str]]

    @property
    def folders(self) -> list[Path]:
        """All folders that belong to runs."""
        used = [run.folder for run in (*self.evaluations, *self.trainings)]
        return [*used, *(folder for folder, _ in self.left_out)]


def find_runs(paths: Iterable[Path]) -> FoundRuns:
    """Search folders for runs, at any depth; each counts once.

    A training whose log is damaged is left out; an evaluation is not, for its numbers are missed.

    Raises
    ------
    FileNotFoundError : if a path is no folder.
    ValueError : if there is no run in any of them, or a file of an evaluation is damaged.
    """
    paths = list(paths)
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; name a run folder or one above it")
        for folder in _run_folders(path):
            resolved = folder.resolve()
            folders.setdefault(resolved, resolved if folder.name in ("", "..") else folder)
    found = FoundRuns([], [], [])
    for folder in folders.values():
        _sort_in(folder, found)
    if not found.evaluations and not found.trainings:
        beside = "".join(f"; {folder}: {reason}" for folder, reason in found.left_out)
        raise ValueError(
            f"no finished run of recipes.evaluate and no training in "
            f"{', '.join(map(str, paths))}{beside}"
        )
    return found


def read_evaluation(folder: Path) -> Evaluation:
    """Read the folder of a finished evaluation.

    Raises
    ------
    ValueError : if a file is damaged or lacks something; names the file and the key.
    """
    path = folder / "metrics.json"
    content = read_json(path)
    codec = _mapping(content, "codec", path)
    if "name" not in codec:
        raise ValueError(f"{path}: codec has no name")
    scores = {
        name: score
        for name, entry in _mapping(content, "scores", path).items()
        if (score := _score(entry, f"{path}: scores.{name}")) is not None
    }
    # That of a downstream task is a part of its training's folder.
    description = read_description(folder) or read_description(folder.parent)
    if description is not None and not description.get("starts"):
        raise ValueError(f"{folder / 'run.json'} has no key starts")
    return Evaluation(
        folder=folder,
        task=str(content["task"]),
        codec=codec,
        dataset=_dataset(content, path),
        scores=scores,
        code_usage=_mapping(content, "code_usage", path),
        settings=_mapping(content, "settings", path),
        models=_mapping(content, "models", path),
        not_computed=_mapping(content, "not_computed", path),
        failures=_failures(content, path),
        starts=starts_of(RunFiles(folder, {}, description), "evaluation"),
    )


def labels(runs: Iterable[Evaluation]) -> dict[Path, str]:
    """Name of each run among others, by folder: its codec's, and what tells it from namesakes.

    That is what their settings differ in, and where they do not the folder's name.
    """
    return told_apart(
        (run.folder, run.codec_name, run.settings | {"weights": str(run.codec.get("model_id"))})
        for run in runs
    )


def told_apart(things: Iterable[tuple[Path, str, dict[str, Any]]]) -> dict[Path, str]:
    """Names by folder, with what tells namesakes apart: where they differ, else the folder.

    Parameters
    ----------
    things : folder, name, and what may differ between namesakes.
    """
    named: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, name, about in things:
        named.setdefault(name, []).append((folder, about))
    found = {}
    for name, members in named.items():
        folders = [folder for folder, _ in members]
        texts = _differing([about for _, about in members])
        for folder, text in zip(folders, texts, strict=True):
            if texts.count(text) > 1:
                text = ", ".join(filter(None, (text, _shortest(folder, folders))))
            found[folder] = f"{name} ({text})" if text else name
    return found


def _sort_in(folder: Path, found: FoundRuns) -> None:
    metrics = folder / "metrics.json"
    if metrics.is_file() and "task" in read_json(metrics):
        found.evaluations.append(read_evaluation(folder))
    elif (folder / "steps.jsonl").is_file():
        try:
            found.trainings.append(Training(folder, read_steps(folder)))
        except ValueError as error:
            found.left_out.append((folder, str(error)))
    elif not metrics.is_file():
        found.left_out.append((folder, "it has no metrics.json: the run has not ended"))
    else:
        found.left_out.append((folder, "metrics.json has no task: not a run of recipes.evaluate"))


def _run_folders(path: Path) -> list[Path]:
    """Run folders in a folder; what lies inside a run is not searched."""
    found = []
    for place, folders, files in os.walk(path):
        folders.sort()
        is_run = "run.json" in files or "steps.jsonl" in files
        if not is_run and "metrics.json" in files:
            is_run = "task" in read_json(Path(place) / "metrics.json")
        if is_run:
            found.append(Path(place))
            found += (file.parent for file in sorted(Path(place).glob("evaluation*/metrics.json")))
            folders.clear()
    return found


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} must be an object, got {type(value).__name__}")
    return value


def _dataset(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    dataset = _mapping(content, "dataset", path)
    _mapping(dataset, "options", path)
    found = dataset.get("hash")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{path}: dataset.hash must be text, got {found!r}")
    return dataset


def _failures(content: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    failures = content.get("failures", [])
    if not isinstance(failures, list):
        raise ValueError(f"{path}: failures must be a list, got {type(failures).__name__}")
    for number, failure in enumerate(failures):
        if not isinstance(failure, dict) or not {"id", "metric", "reason"} <= failure.keys():
            raise ValueError(
                f"{path}: failures[{number}] must be an object with id, metric and reason, got "
                f"{failure!r}"
            )
    return failures


def _check_weights(row: Mapping[str, Any], path: Path) -> None:
    for score, weight in WEIGHTS.items():
        if f"hyp_{score}" in row and not row.get(f"hyp_{weight}", 0) > 0:
            raise ValueError(
                f"{path}: {row['id']} has hyp_{score} but no hyp_{weight} above 0, by which its "
                f"mean is weighted; add the column or remove hyp_{score}"
            )


def _score(entry: Any, place: str) -> Score | None:
    """Score of an object with ``mean``, or of a bare number; None if it is not finite."""
    if not isinstance(entry, dict):
        entry = {"mean": entry}
    mean, low, high = (entry.get(key) for key in ("mean", "low", "high"))
    if mean is None or (isinstance(mean, float) and not math.isfinite(mean)):
        return None
    for value in (mean, low, high):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{place} must hold numbers, got {value!r}")
    return Score(mean, low, high, entry.get("utterances"))


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    keys = [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]
    return [
        ", ".join(f"{key} {one[key]}" if key in one else f"no {key}" for key in keys)
        for one in settings
    ]


def _numbers(row: Mapping[str, str | None]) -> dict[str, float]:
    found = {}
    for key, text in row.items():
        try:
            found[key] = float(text or "")
        except (TypeError, ValueError):
            continue
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _shortest(folder: Path, folders: list[Path]) -> str:
    """Fewest last parts of a folder's path that no other shares."""
    parts = folder.resolve().parts
    others = [other.resolve().parts for other in folders if other != folder]
    for number in range(1, len(parts)):
        if all(other[-number:] != parts[-number:] for other in others):
            return "/".join(parts[-number:])
    return str(folder)
