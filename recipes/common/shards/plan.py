"""How a corpus is divided into shards: by the manifests alone, so that all processes agree."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow as pa

from recipes.common.shards.extractors import Extractor
from recipes.common.shards.format import LABELS, ShardError, shard_name

Manifest = Mapping[str, Mapping[str, Any]]
_PATHS = ("wav", "target", "target_2", "noise", "reference")
_NAMES = ("name", "model_id")  # of an extractor: the same weights may be called something else


class Shard(NamedTuple):
    """One shard that is to be there: its name, its utterances in order, seconds of audio."""

    name: str
    subset: str
    ids: tuple[str, ...]
    seconds: float


def plan_shards(manifests: Mapping[str, Manifest], *, shard_minutes: float) -> list[Shard]:
    """Shards of all subsets: utterances by id, a shard closed before it would become too long.

    Parameters
    ----------
    manifests : rows by utterance id, by subset; a subset without rows has no shard.
    shard_minutes : of audio in a shard; a longer utterance is a shard of its own.

    Raises
    ------
    ShardError : if nothing is to be done, a name would not do for a file, or ``shard_minutes`` is
        not above 0.
    """
    if not shard_minutes > 0:
        raise ShardError(f"shard_minutes must be above 0, got {shard_minutes}")
    if not any(manifests.values()):
        raise ShardError("there is no utterance in any subset; check the dataset's splits")
    shards = []
    for subset, rows in manifests.items():
        if not subset.isidentifier():
            raise ShardError(f"a subset is named like train, valid or test, got {subset!r}")
        chunks = list(_chunks(rows, 60 * shard_minutes))
        for number, ids in enumerate(chunks):
            seconds = sum(rows[key]["duration"] for key in ids)
            shards.append(
                Shard(shard_name(subset, number, len(chunks)), subset, tuple(ids), seconds)
            )
    return shards


def manifest_hash(rows: Manifest) -> str:
    """Short hash of a manifest, the same wherever the corpus lies."""
    digest = hashlib.sha256()
    for key in sorted(rows):
        row = {
            name: PurePath(value).name if name in _PATHS else value
            for name, value in rows[key].items()
        }
        digest.update(f"{json.dumps([key, row], sort_keys=True)}\n".encode())
    return digest.hexdigest()[:16]


def origin(wanted: Mapping[str, Any], subset: str) -> str:
    """Short hash of all that a subset's shards depend on; ``wanted`` is for ``tokens.json``."""
    extractor = {key: value for key, value in wanted["extractor"].items() if key not in _NAMES}
    manifest = wanted["subsets"][subset]["manifest"]
    parts = [extractor, wanted["shard_minutes"], wanted["columns"], manifest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def describe_subsets(
    manifests: Mapping[str, Manifest], shards: Sequence[Shard]
) -> dict[str, dict[str, Any]]:
    """Say for ``tokens.json`` what a subset is: hash of its manifest, utterances, shards."""
    return {
        subset: {
            "manifest": manifest_hash(rows),
            "utterances": len(rows),
            "shards": sum(shard.subset == subset for shard in shards),
        }
        for subset, rows in manifests.items()
    }


def all_columns(manifests: Mapping[str, Manifest], extractor: Extractor) -> dict[str, pa.DataType]:
    """Columns that the rows of all subsets need together."""
    columns = {"id": pa.string(), "duration": pa.float64()}
    labels: set[str] = set()
    for row in (row for rows in manifests.values() for row in rows.values()):
        columns |= extractor.columns(row)
        labels |= row.keys() & set(LABELS)
    return columns | {label: pa.string() for label in LABELS if label in labels}


def refuse_other_corpus(
    folder: Path, *, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raise ShardError if a folder has another extractor, corpus or division than is wanted.

    Parameters
    ----------
    folder : of the shards, for the message.
    found, wanted : contents of ``tokens.json``, there and as they would be.
    """
    _refuse_other_extractor(folder, found=found["extractor"], wanted=wanted["extractor"])
    for key in ("shard_minutes", "columns"):
        if found[key] != wanted[key]:
            raise ShardError(
                f"{folder} has {key} {found[key]}, and now they would be {wanted[key]}; pass what "
                "it has, with all subsets at once, or choose another folder"
            )
    for subset, plan in wanted["subsets"].items():
        known = found["subsets"].get(subset, plan)
        if known["manifest"] != plan["manifest"]:
            raise ShardError(
                f"{folder} was begun with another corpus: its {known['utterances']} utterances of "
                f"{subset} are not the {plan['utterances']} of now; put the data and their limits "
                "back, or choose another folder"
            )


def is_newer(row: Mapping[str, Any], time: int) -> bool:
    """Whether audio of an utterance was written after a time (ns); what is missing was not."""
    for path in (row[name] for name in _PATHS if name in row):
        with suppress(OSError):
            if os.stat(path).st_mtime_ns > time:
                return True
    return False


def _refuse_other_extractor(
    folder: Path, *, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    differences = [
        f"{key} is {found.get(key)} there and {wanted.get(key)} here"
        for key in sorted({*found, *wanted} - set(_NAMES))
        if found.get(key) != wanted.get(key)
    ]
    if differences:
        raise ShardError(
            f"{folder} was made by {found.get('name')}: {', '.join(differences)}; put the old "
            "codec and its weights back, or choose another folder"
        )


def _chunks(rows: Manifest, limit: float) -> Iterator[list[str]]:
    chunk: list[str] = []
    total = 0.0
    for key in sorted(rows):
        if chunk and total + rows[key]["duration"] > limit:
            yield chunk
            chunk, total = [], 0.0
        chunk.append(key)
        total += rows[key]["duration"]
    if chunk:
        yield chunk
