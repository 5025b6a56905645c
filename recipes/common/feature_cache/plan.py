"""What is still to be computed for a feature cache, and whether it fits on the disk."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from recipes.common.disk import free_bytes, size_text
from recipes.common.feature_cache.format import (
    DTYPES,
    ITEM_SIZE,
    CacheError,
    describe_encoder,
    partial_bytes,
    read_description,
    read_indexes,
)

Entries = Mapping[str, Mapping[str, Any]]


class CachePlan(NamedTuple):
    """Utterances that the cache lacks, and what they cost."""

    folder: Path
    missing: tuple[str, ...]
    num_known: int  # utterances that are there, or known as bad
    seconds: float  # of audio
    num_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        """One line to show before the start."""
        return (
            f"feature cache {self.folder}: {self.num_known} utterances there, "
            f"{len(self.missing)} to encode ({self.seconds / 3600:.2f} h), "
            f"{size_text(self.num_bytes)} to write, {size_text(self.free_bytes)} free"
        )


def plan(
    folder: str | Path,
    entries: Entries,
    *,
    encoder: nn.Module,
    fingerprint: str,
    dtype: str = "float16",
) -> CachePlan:
    """Find out what is missing; nothing is written.

    Parameters
    ----------
    folder, entries, encoder, fingerprint, dtype : as in `build_cache`.

    Raises
    ------
    CacheError : if it does not fit (with both numbers), if ``folder`` holds features of another
        encoder or dtype, or if a shard is damaged.
    """
    folder = Path(folder)
    known = known_utterances(
        folder, encoder=describe_encoder(encoder, fingerprint), dtype=check_dtype(dtype)
    )
    missing = tuple(key for key in entries if key not in known)
    # What is being written, or was left by a dead process, is part of what is missing.
    free = free_bytes(folder)
    free += partial_bytes(folder, finished=False) if folder.is_dir() else 0
    found = CachePlan(
        folder,
        missing,
        len(entries) - len(missing),
        sum(entries[key]["num_samples"] for key in missing) / encoder.sample_rate,
        sum(feature_bytes(entries[key]["num_samples"], encoder=encoder) for key in missing),
        free,
    )
    if found.num_bytes > found.free_bytes:
        raise CacheError(
            f"{folder} needs {size_text(found.num_bytes)} for {len(missing)} utterances and "
            f"{size_text(found.free_bytes)} are free; make room, choose a folder on another disk, "
            "or cache fewer subsets"
        )
    return found


def known_utterances(folder: Path, *, encoder: Mapping[str, Any], dtype: str) -> set[str]:
    """Utterances of finished shards, bad ones included; empty where there is no cache.

    Raises
    ------
    CacheError : as `plan` does.
    """
    check_description(folder, encoder=encoder, dtype=dtype)
    indexes = read_indexes(
        folder, fingerprint=encoder["fingerprint"], dtype=dtype, skip_missing=True
    )
    return {key for index in indexes.values() for key in (*index.rows, *index.bad)}


def check_description(folder: Path, *, encoder: Mapping[str, Any], dtype: str) -> bool:
    """Whether there is a cache; CacheError if it is of another encoder or dtype."""
    found = read_description(folder, encoder=encoder)
    if found not in (None, dtype):
        raise CacheError(
            f"{folder} holds {found} and {dtype} is asked for; pass "
            f"--feature_cache_dtype {found}, or choose "
            "another folder"
        )
    return found is not None


def feature_bytes(num_samples: int, *, encoder: nn.Module) -> int:
    """Bytes of the stored features of an utterance."""
    return math.ceil(num_samples / encoder.hop_length) * encoder.dim * ITEM_SIZE


def merge_entries(subsets: Mapping[str, Entries]) -> dict[str, dict[str, Any]]:
    """Utterances of all subsets by id.

    Raises
    ------
    CacheError : if two subsets have other audio under one id.
    """
    merged: dict[str, dict[str, Any]] = {}
    for subset, entries in subsets.items():
        for key, entry in entries.items():
            if merged.get(key, entry)["wav"] != entry["wav"]:
                raise CacheError(
                    f"utterance {key} of {subset} is {entry['wav']}, and {merged[key]['wav']} in "
                    "another subset, but a cache knows utterances by their id; rename one of the "
                    "files, or take dataset/folder.yaml, whose ids are paths"
                )
            merged[key] = entry
    return merged


def check_dtype(dtype: str) -> str:
    """Give the dtype's name back; CacheError if it is none that is stored."""
    if dtype not in DTYPES:
        raise CacheError(f"feature_cache_dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    return dtype
