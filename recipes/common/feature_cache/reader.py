"""Features of the frozen encoder, read from the disk where they were computed once.

`recipes.cache_features` writes a cache; in training it stands in the place of the encoder
(sig -> feats). Features are stored in half precision for whole utterances. The form of the files is
described in `recipes.common.feature_cache.format`.
"""

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recipes.common.feature_cache.format import (
    DTYPES,
    ITEM_SIZE,
    CacheError,
    Row,
    damaged_shards,
    read_description,
    read_indexes,
    shard_name,
)
from recipes.common.files import file_crc

_MAX_MAPS = 256  # each holds a file descriptor, of which a process often has only 1024
_NUM_SHOWN = 5
_FIELDS = ("shard", *Row._fields)


class FeatureCache:
    """Read-only view of the finished shards of a cache.

    Opening reads the indexes only and compares them with the shards' sizes. Shards are memory-
    mapped when they are first read, in each process for itself; a pickled cache takes its index
    along, not its maps. A shard must not be cut short while it is mapped: the system would kill
    the process (SIGBUS).

    Parameters
    ----------
    folder : of the cache.
    encoder : `describe_encoder` of the encoder whose features are wanted.

    Attributes
    ----------
    dim : channels of the features.
    dtype : "float16" or "bfloat16", as stored.
    bad : reason by utterance, for those whose audio could not be used.

    Raises
    ------
    CacheError : if there is no cache, if it is of another encoder (with both values), or if a shard
        or an index is damaged (with its name).
    """

    def __init__(self, folder: str | Path, *, encoder: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        dtype = read_description(self.folder, encoder=encoder)
        if dtype is None:
            raise CacheError(
                f"{self.folder} holds no feature cache (no cache.json); make it with "
                "python -m recipes.cache_features, or correct the path"
            )
        self.dtype = dtype
        self.dim = encoder["dim"]
        self.bad: dict[str, str] = {}
        self._shards: dict[int, int] = {}  # bytes
        self._bad_shards: dict[str, int] = {}
        rows: dict[str, tuple[int, ...]] = {}
        indexes = read_indexes(self.folder, fingerprint=encoder["fingerprint"], dtype=dtype)
        for number, index in indexes.items():
            self._shards[number] = index.num_bytes
            self.bad |= index.bad
            self._bad_shards |= dict.fromkeys(index.bad, number)
            rows |= {utterance: (number, *row) for utterance, row in index.rows.items()}
        self.bad = {key: reason for key, reason in self.bad.items() if key not in rows}
        # One array, not a tuple each: a large corpus has millions of utterances, and every loader
        # process gets its copy.
        self._rows = {utterance: position for position, utterance in enumerate(rows)}
        self._table = np.array(list(rows.values()), np.int64).reshape(len(rows), len(_FIELDS))
        self._maps: dict[int, np.memmap] = {}

    def __len__(self) -> int:
        """Utterances that can be read."""
        return len(self._rows)

    def __contains__(self, utterance: str) -> bool:
        """Whether an utterance can be read."""
        return utterance in self._rows

    def __getstate__(self) -> dict[str, Any]:
        """State without the maps."""
        return self.__dict__ | {"_maps": {}}

    @property
    def num_bytes(self) -> int:
        """Bytes of all finished shards."""
        return sum(self._shards.values())

    def num_frames(self, utterance: str) -> int:
        """Frames of an utterance; CacheError if it is not there."""
        return self._row(utterance)[1].num_frames

    def read(self, utterance: str, *, start: int = 0, num_frames: int | None = None) -> Tensor:
        """Features of an utterance, or a part of them.

        A whole utterance is compared with its CRC-32 each time it is read. A part cannot be;
        ``verify`` compares everything.

        Parameters
        ----------
        utterance : id.
        start : first frame.
        num_frames : at most so many frames; None = to the end.

        Returns
        -------
        (n, dim) float32, n >= 1.

        Raises
        ------
        CacheError : if the utterance is not there, or damaged (with the name of its shard).
        ValueError : if the part holds no frame.
        """
        shard, row = self._row(utterance)
        end = row.num_frames if num_frames is None else min(start + num_frames, row.num_frames)
        if not 0 <= start < end:
            raise ValueError(
                f"no frame in [{start}, {end}) of utterance {utterance}, which has "
                f"{row.num_frames}; start must be in [0, {row.num_frames}), num_frames at least 1"
            )
        values = self._map(shard)[row.first + start : row.first + end].copy()
        if end - start == row.num_frames and zlib.crc32(values.data) != row.crc:
            raise self._damaged({shard: f"utterance {utterance} differs from its CRC-32"})
        values = torch.from_numpy(values.astype(np.int16, copy=False))
        return values.view(DTYPES[self.dtype]).float()

    def verify(self) -> None:
        """Read everything; CacheError naming each shard with an utterance that is not its CRC's."""
        damaged = {}
        for utterance in tqdm(self._rows, desc="verify", unit="utterance", disable=None):
            shard, row = self._row(utterance)
            values = self._map(shard)[row.first : row.first + row.num_frames]
            if zlib.crc32(np.ascontiguousarray(values).data) != row.crc:
                damaged.setdefault(shard, f"utterance {utterance} differs from its CRC-32")
        if damaged:
            raise self._damaged(damaged)

    def refuse_changed(
        self, entries: Mapping[str, Mapping[str, Any]], *, progress: bool = False
    ) -> None:
        """Refuse utterances that are not in the cache, or whose audio is no longer what it was.

        Paths are not compared, so that a corpus may be moved. Audio counts as unchanged if its size
        and modification time are, or if its size and CRC-32 are; only with another time the bytes
        are read. Utterances known as bad are accepted.

        Parameters
        ----------
        entries : utterances with "wav" and "num_samples" (at the encoder's rate), such as
            ``SigDataset.data``.
        progress : show a bar; after a corpus was copied, all its bytes are read.

        Raises
        ------
        CacheError : with the number of such utterances and the first of them.
        """
        missing = [key for key in entries if key not in self._rows and key not in self.bad]
        cached = [key for key in entries if key in self._rows]
        with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
            found = pool.map(lambda key: self._difference(key, entries[key]), cached)
            found = tqdm(
                found, total=len(cached), desc="audio unchanged", disable=None if progress else True
            )
            changed = {key: text for key, text in zip(cached, found, strict=True) if text}
        problems = []
        if missing:
            problems.append(
                f"{_shown(missing)} not in it: run recipes.cache_features with the same data"
            )
        if changed:
            shards = sorted({int(self._table[self._rows[key], 0]) for key in changed})
            files = " ".join(f"{shard_name(number)}.*" for number in shards[:_NUM_SHOWN])
            more = f" and those of {len(shards) - _NUM_SHOWN} more" * (len(shards) > _NUM_SHOWN)
            problems.append(
                f"{_shown([f'{key} ({text})' for key, text in changed.items()])} with other audio "
                f"than their features: put the audio back, or remove {files}{more} and run "
                "recipes.cache_features, or choose another folder for another corpus"
            )
        if problems:
            raise CacheError(f"{self.folder}, {len(entries)} utterances: " + "; ".join(problems))

    def _row(self, utterance: str) -> tuple[int, Row]:
        """Shard and row of an utterance."""
        position = self._rows.get(utterance)
        if position is None and utterance in self.bad:
            shard = shard_name(self._bad_shards[utterance])
            raise CacheError(
                f"utterance {utterance} has no features, its audio is bad "
                f"({self.bad[utterance]}); leave it out, or repair it, remove {shard}.* in "
                f"{self.folder} and run recipes.cache_features"
            )
        if position is None:
            raise CacheError(
                f"utterance {utterance} is not among the {len(self)} of {self.folder}; run "
                "recipes.cache_features with the same data"
            )
        shard, *row = self._table[position].tolist()
        return shard, Row(*row)

    def _map(self, shard: int) -> np.memmap:
        """(frames, dim) 16-bit integers of a shard."""
        mapped = self._maps.get(shard)
        if mapped is None:
            path = self.folder / f"{shard_name(shard)}.bin"
            shape = (self._shards[shard] // (ITEM_SIZE * self.dim), self.dim)
            try:
                size = path.stat().st_size
                if size != self._shards[shard]:
                    raise ValueError(f"{size} bytes where the index says {self._shards[shard]}")
                mapped = np.memmap(path, "<i2", mode="r", shape=shape)
            except (OSError, ValueError) as error:
                raise self._damaged({shard: str(error)}) from error
            if len(self._maps) >= _MAX_MAPS:
                self._maps.clear()
            self._maps[shard] = mapped
        return mapped

    def _difference(self, utterance: str, entry: Mapping[str, Any]) -> str:
        """Say how an utterance's audio differs from the one it was encoded from; "" if not."""
        row = self._row(utterance)[1]
        try:
            status = os.stat(entry["wav"])
            if status.st_size != row.file_size:
                return f"{entry['wav']}: {status.st_size} bytes, were {row.file_size}"
            if entry["num_samples"] != row.num_samples:
                return f"{entry['wav']}: {entry['num_samples']} samples, were {row.num_samples}"
            same_time = status.st_mtime_ns == row.file_mtime_ns
            same = same_time or file_crc(entry["wav"]) == row.file_crc
        except OSError as error:
            return f"{entry['wav']}: {error.strerror or error}"
        return "" if same else f"{entry['wav']}: other bytes"

    def _damaged(self, reasons: Mapping[int, str]) -> CacheError:
        return damaged_shards(self.folder, reasons)


def _shown(items: list[str]) -> str:
    """Say how many items there are, and the first of them."""
    dots = ", ..." if len(items) > _NUM_SHOWN else ""
    return f"{len(items)} ({', '.join(items[:_NUM_SHOWN])}{dots})"
