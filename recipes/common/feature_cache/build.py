"""Fill a feature cache: encode whole utterances, shard by shard, in any number of processes.

Memory is bounded by a batch and the ones read ahead. A shard is written under a temporary name,
flushed, renamed, and its index after it; so a build may be killed at any instruction and started
again: finished shards stay, and the result is the same, byte for byte.
"""

import logging
import time
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from recipes.common.disk import explaining_disk_errors, publish, remove_unpublished
from recipes.common.feature_cache.encode import UnitEncoder
from recipes.common.feature_cache.format import (
    CacheError,
    describe_encoder,
    is_finished,
    shard_name,
    shard_numbers,
    write_description,
    write_index,
)
from recipes.common.feature_cache.plan import (
    Entries,
    check_description,
    feature_bytes,
    plan,
)
from recipes.common.feature_cache.progress import BuildProgress
from recipes.common.feature_cache.reader import FeatureCache
from recipes.common.feature_cache.units import UNIT_BYTES, add_units, locked, read_units, take_unit

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 2.0  # seconds between two looks at what the others do


class BuildReport(NamedTuple):
    """What one process did, and what is in the cache now."""

    utterances: int  # encoded by this process
    seconds: float  # of audio, encoded by this process
    wall_seconds: float
    num_bytes: int  # of all shards
    bad: dict[str, str]  # reason by utterance, of the entries


def build_cache(
    folder: str | Path,
    entries: Entries,
    *,
    encoder: nn.Module,
    fingerprint: str,
    dtype: str = "float16",
    device: str | torch.device = "cpu",
    batch_seconds: float = 120.0,
    on_bad_file: str = "skip",
    bad_files: str | Path | None = None,
    progress: bool = True,
    unit_bytes: int = UNIT_BYTES,
) -> BuildReport:
    """Encode what the cache lacks; return when all of it is there.

    Any number of processes, on one machine or on several that share the folder, may call it at any
    time; they share the work through the file system and wait for each other. The encoder is moved
    to ``device`` and put into evaluation mode.

    Parameters
    ----------
    folder : of the cache; made if it is not there.
    entries : utterances by id, with "wav" and "num_samples" (at the encoder's rate), such as
        ``SigDataset.data``.
    encoder : see `focalcodec.codec.FocalCodec`, with its weights.
    fingerprint : ``recipes.common.fingerprint.fingerprint(encoder)``.
    dtype : "float16", or "bfloat16" for features beyond 65504.
    device : of the encoder.
    batch_seconds : limit of a padded batch, in seconds; a longer utterance is a batch of its own.
    on_bad_file : "skip" notes bad audio in the index, so that it is not tried again, and lists it;
        "raise" stops.
    bad_files : tsv file to which "skip" appends.
    progress : announce the work through ``logging`` and show a bar.
    unit_bytes : limit of a shard.

    Raises
    ------
    BadAudioError : with "raise".
    CacheError : if the cache is another encoder's or damaged, if cached audio has changed, if the
        features are not finite in ``dtype``, if the disk is full, or if many files in a row are
        bad.
    """
    started = time.monotonic()
    announced = plan(folder, entries, encoder=encoder, fingerprint=fingerprint, dtype=dtype)
    if progress:
        logger.info("%s", announced)
    build = _Build(
        Path(folder),
        UnitEncoder(
            entries,
            encoder=encoder,
            dtype=dtype,
            device=device,
            batch_seconds=batch_seconds,
            on_bad_file=on_bad_file,
            bad_files=bad_files,
        ),
        fingerprint=fingerprint,
        missing=announced.missing,
    )
    cache = build.open()
    cache.refuse_changed({key: entries[key] for key in entries if key in cache}, progress=progress)
    bar = BuildProgress(build.folder, seconds=announced.seconds, encoder=encoder, enabled=progress)
    with closing(bar):
        build.run(bar=bar, unit_bytes=unit_bytes)
        bar.finish()
    cache = FeatureCache(folder, encoder=build.description)
    lost = [key for key in entries if key not in cache and key not in cache.bad]
    if lost:
        raise CacheError(
            f"{folder}: plan.json counts {len(lost)} utterances ({lost[0]}, ...) to finished "
            "shards that do not hold them; remove plan.json and run the same command"
        )
    return BuildReport(
        len(build.encoded),
        sum(entries[key]["num_samples"] for key in build.encoded) / encoder.sample_rate,
        time.monotonic() - started,
        cache.num_bytes,
        {key: cache.bad[key] for key in entries if key in cache.bad},
    )


class _Build:
    """One process at work on a cache; ``encoded`` lists what it has done."""

    def __init__(
        self,
        folder: Path,
        unit_encoder: UnitEncoder,
        *,
        fingerprint: str,
        missing: tuple[str, ...],
    ) -> None:
        self.folder = folder
        self.missing = missing
        self.unit_encoder = unit_encoder
        self.entries = unit_encoder.entries
        self.description = describe_encoder(unit_encoder.encoder, fingerprint)
        self.encoded: list[str] = []

    def open(self) -> FeatureCache:
        """Make the folder what a cache needs, and open it."""
        with self._explaining_disk_errors(), locked(self.folder, "plan"):
            dtype = self.unit_encoder.dtype
            if not check_description(self.folder, encoder=self.description, dtype=dtype):
                remove_unpublished(self.folder, "cache.json")
                write_description(self.folder, encoder=self.description, dtype=dtype)
        for number in shard_numbers(self.folder):
            if not is_finished(self.folder, number):
                with locked(self.folder, shard_name(number)):
                    if not is_finished(self.folder, number):  # it may have been, while we waited
                        self._clear(number)
        return FeatureCache(self.folder, encoder=self.description)

    def run(self, *, bar: BuildProgress, unit_bytes: int) -> None:
        """Work until every unit with a missing utterance is finished, by whomever."""
        wanted = set(self.missing)
        encoder = self.unit_encoder.encoder
        sizes = {
            key: feature_bytes(self.entries[key]["num_samples"], encoder=encoder) for key in wanted
        }
        with self._explaining_disk_errors():
            add_units(self.folder, sizes, unit_bytes=unit_bytes)
        pause = 0.05
        while pending := self._pending(wanted):
            if any([self._build_unit(number, bar) for number in pending]):
                pause = 0.05
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            bar.update()

    def _pending(self, wanted: set[str]) -> list[int]:
        return [
            number
            for number, ids in read_units(self.folder).items()
            if not wanted.isdisjoint(ids) and not is_finished(self.folder, number)
        ]

    def _build_unit(self, number: int, bar: BuildProgress) -> bool:
        """Claim a unit and write its shard; False if there was nothing to do."""
        if is_finished(self.folder, number):
            return False
        with (
            self._explaining_disk_errors(),
            locked(self.folder, shard_name(number), wait=False) as claimed,
        ):
            if not claimed or is_finished(self.folder, number):
                return False
            ids = take_unit(self.folder, number, self.entries)
            if not ids:
                return False
            self._clear(number)
            write = partial(self.unit_encoder.write, ids=ids, on_batch=bar.update)
            index = publish(self.folder / f"{shard_name(number)}.bin", write)
            write_index(
                self.folder,
                number,
                index,
                fingerprint=self.description["fingerprint"],
                dtype=self.unit_encoder.dtype,
            )
            self.encoded += index.rows
        return True

    def _clear(self, number: int) -> None:
        """Remove what is left of a shard, its index first; the caller holds its lock."""
        for suffix in (".json", ".bin"):
            name = f"{shard_name(number)}{suffix}"
            (self.folder / name).unlink(missing_ok=True)
            remove_unpublished(self.folder, name)

    def _explaining_disk_errors(self) -> AbstractContextManager[None]:
        return explaining_disk_errors(self.folder, needed=self._needed_bytes, refuse=CacheError)

    def _needed_bytes(self) -> int:
        done = {
            key
            for number, ids in read_units(self.folder).items()
            if is_finished(self.folder, number)
            for key in ids
        }
        return sum(
            feature_bytes(self.entries[key]["num_samples"], encoder=self.unit_encoder.encoder)
            for key in self.missing
            if key not in done
        )
