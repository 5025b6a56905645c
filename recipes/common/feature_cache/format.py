"""Form of a feature cache on the disk: ``cache.json``, shards and their indexes.

::

    cache.json        version, encoder, dtype, byte order
    plan.json         work units: the utterances of each shard (`units`)
    shard-00000.bin   features (frames, dim), one utterance after the other, little-endian
    shard-00000.json  its index: a header line, then one line for each utterance
    locks/            empty files that claims are made on; they stay

A shard appears whole, and its index after it: a shard without an index is unfinished work and is
computed again. bfloat16 has no numpy type, so both types are read and written as 16-bit integers.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from recipes.common.disk import TEMPORARY, publish_text

VERSION = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ITEM_SIZE = 2  # bytes of a stored number


class CacheError(ValueError):
    """Whatever keeps a feature cache from being made or used, with what to do about it."""


class Row(NamedTuple):
    """Where the features of an utterance lie in their shard, and which audio they come from."""

    first: int  # frame of the shard
    num_frames: int
    crc: int  # CRC-32 of the utterance's bytes
    file_size: int  # bytes
    file_mtime_ns: int
    file_crc: int  # CRC-32 of the file's bytes
    num_samples: int  # at the encoder's rate


class Index(NamedTuple):
    """What a shard holds: its size in bytes, rows by utterance, reasons by unusable utterance."""

    num_bytes: int
    rows: dict[str, Row]
    bad: dict[str, str]


def describe_encoder(encoder: nn.Module, fingerprint: str) -> dict[str, Any]:
    """Describe what features depend on.

    Parameters
    ----------
    encoder : see `focalcodec.codec.FocalCodec`.
    fingerprint : ``recipes.common.fingerprint.fingerprint(encoder)``.
    """
    return {
        "fingerprint": fingerprint,
        "sample_rate": encoder.sample_rate,
        "hop_length": encoder.hop_length,
        "dim": encoder.dim,
    }


def shard_name(number: int) -> str:
    """Name of a shard's files without their suffixes."""
    return f"shard-{number:05d}"


def is_finished(folder: Path, number: int) -> bool:
    """Whether a shard and its index are there."""
    path = folder / shard_name(number)
    return path.with_suffix(".json").exists() and path.with_suffix(".bin").exists()


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of the shards that have an index, in order."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = (re.fullmatch(r"shard-(\d+)\.json", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def read_description(folder: Path, *, encoder: Mapping[str, Any]) -> str | None:
    """Name of the cache's dtype, or None if the folder holds no cache.

    Raises
    ------
    CacheError : if the cache is of another version or of another encoder than ``encoder``.
    """
    path = folder / "cache.json"
    try:
        content = json.loads(path.read_bytes())
        version, dtype, found = content["version"], content["dtype"], dict(content["encoder"])
        known = dtype in DTYPES and content["byte_order"] == "little"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}; choose another folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it and run "
            "recipes.cache_features with the old options: finished shards are kept"
        ) from error
    if version != VERSION or not known:
        raise CacheError(
            f"{folder} is a feature cache of version {version}, {dtype}, and version {VERSION} in "
            f"little-endian {' or '.join(DTYPES)} is needed; choose another folder or remove it"
        )
    differences = [
        f"{key} is {found.get(key)} in the cache and {encoder.get(key)} here"
        for key in sorted({*found, *encoder})
        if found.get(key) != encoder.get(key)
    ]
    if differences:
        raise CacheError(
            f"{folder} holds features of another encoder: {', '.join(differences)}; put the old "
            "encoder and encoder_checkpoint back, or choose another folder"
        )
    return dtype


def write_description(folder: Path, *, encoder: Mapping[str, Any], dtype: str) -> None:
    """Write ``cache.json``."""
    content = {
        "version": VERSION,
        "encoder": dict(encoder),
        "dtype": dtype,
        "byte_order": "little",
    }
    publish_text(folder / "cache.json", json.dumps(content, indent=2) + "\n")


def write_index(folder: Path, number: int, index: Index, *, fingerprint: str, dtype: str) -> None:
    """Write a shard's index; from then on the shard counts as finished."""
    rows = [{"id": key, **row._asdict()} for key, row in index.rows.items()]
    rows += [{"id": key, "bad": reason} for key, reason in index.bad.items()]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    header = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "dtype": dtype,
        "num_bytes": index.num_bytes,
        "crc": zlib.crc32(body.encode()),
    }
    path = folder / f"{shard_name(number)}.json"
    publish_text(path, json.dumps(header) + "\n" + body)


def read_indexes(
    folder: Path, *, fingerprint: str, dtype: str, skip_missing: bool = False
) -> dict[int, Index]:
    """Read the indexes of all finished shards by number, and compare the shards' sizes.

    Parameters
    ----------
    folder : of the cache.
    fingerprint, dtype : that the shards must have been made with.
    skip_missing : leave out an index whose shard was removed, in place of refusing it.

    Raises
    ------
    CacheError : naming every damaged shard.
    """
    indexes, damaged = {}, {}
    for number in shard_numbers(folder):
        if skip_missing and not is_finished(folder, number):
            continue
        try:
            indexes[number] = _read_index(folder, number, fingerprint=fingerprint, dtype=dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged[number] = str(error) or type(error).__name__
    if damaged:
        raise damaged_shards(folder, damaged)
    return indexes


def damaged_shards(folder: Path, reasons: Mapping[int, str]) -> CacheError:
    """Error that names damaged shards, five at most with their reasons, and what to do."""
    shown = "; ".join(f"{shard_name(n)}: {reasons[n]}" for n in list(reasons)[:5])
    files = " ".join(f"{shard_name(number)}.*" for number in reasons)
    return CacheError(
        f"{folder}: {len(reasons)} damaged (or foreign) shards: {shown}; remove {files} there and "
        "run the same recipes.cache_features command: only they are computed again"
    )


def partial_bytes(folder: Path, *, finished: bool) -> int:
    """Bytes of features in the folder: in files being written, with ``finished`` in all shards."""
    total = 0
    pattern = rf"shard-\d+\.bin({re.escape(TEMPORARY)}.*)?"
    with os.scandir(folder) as scan:
        for entry in scan:
            match = re.fullmatch(pattern, entry.name)
            if match and (finished or match[1]):
                with suppress(FileNotFoundError):  # renamed meanwhile
                    total += entry.stat().st_size
    return total


def _read_index(folder: Path, number: int, *, fingerprint: str, dtype: str) -> Index:
    path = folder / shard_name(number)
    head, _, body = path.with_suffix(".json").read_bytes().partition(b"\n")
    header = json.loads(head)
    made_with = header["version"], header["fingerprint"], header["dtype"]
    needed = VERSION, fingerprint, dtype
    if made_with != needed:
        raise ValueError(f"made with version, encoder, dtype {made_with}, not {needed}")
    if zlib.crc32(body) != header["crc"]:
        raise ValueError("the index is damaged")
    size = path.with_suffix(".bin").stat().st_size
    if size != header["num_bytes"]:
        raise ValueError(f"{size} bytes where the index says {header['num_bytes']}")
    index = Index(size, {}, {})
    for line in body.splitlines():
        row = json.loads(line)
        utterance = row.pop("id")
        if "bad" in row:
            index.bad[utterance] = row["bad"]
        else:
            index.rows[utterance] = Row(**row)
    return index
