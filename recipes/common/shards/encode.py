"""Extract the rows of one shard: batches of similar length, finished ones kept at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from focalcodec.resampling import resampled_length
from recipes.common.dataio import BadAudioError
from recipes.common.disk import publish
from recipes.common.read_ahead import ReadAhead, length_batches
from recipes.common.shards.extractors import Extractor, Signals
from recipes.common.shards.format import (
    LABELS,
    ShardError,
    make_table,
    shard_path,
    with_notes,
    write_shard,
)
from recipes.common.shards.journal import Journal
from recipes.common.shards.plan import Manifest, Shard, is_newer


class ShardEncoder:
    """Encoder of shards, whose extractor is moved to a device.

    Parameters
    ----------
    folder : of the shards.
    manifests : rows by utterance id, by subset.
    extractor, device, batch_seconds, on_bad_file : as in
        `recipes.common.shards.build.build_shards`.
    schema : of the shards' rows.
    origins : of the shards, by subset (`recipes.common.shards.plan.origin`).
    """

    def __init__(
        self,
        folder: Path,
        manifests: Mapping[str, Manifest],
        *,
        extractor: Extractor,
        device: str | torch.device,
        batch_seconds: float,
        on_bad_file: str,
        schema: pa.Schema,
        origins: Mapping[str, str],
    ) -> None:
        if not batch_seconds > 0:
            raise ShardError(f"batch_seconds must be above 0, got {batch_seconds}")
        extractor.to(device)
        self.folder = folder
        self.manifests = manifests
        self.extractor = extractor
        self.batch_seconds = batch_seconds
        self.schema = schema
        self.origins = origins
        self._rows: Manifest = {}  # of the subset at work
        self._read_ahead = ReadAhead(
            self._load,
            on_bad_file=on_bad_file,
            num_utterances=sum(map(len, manifests.values())),
            refuse=ShardError,
            place="the shards",
        )

    def write(self, shard: Shard, *, on_batch: Callable[[], None]) -> int:
        """Write a shard, beginning with what its journal holds; the caller holds its lock.

        Parameters
        ----------
        shard : not there yet.
        on_batch : called after each batch.

        Returns
        -------
        Utterances that were tried now.

        Raises
        ------
        BadAudioError : with the policy "raise".
        ShardError : if the data are gone, or a batch does not fit on the device.
        """
        self._rows = self.manifests[shard.subset]
        journal = self.journal(shard)
        table, bad = journal.read(is_newer=lambda key, time: is_newer(self._rows[key], time))
        known = {*table["id"].to_pylist(), *bad}
        missing = [key for key in shard.ids if key not in known]
        tables = [table]
        for keys, audio, batch_bad in self._loaded(missing):
            tables.append(make_table(self._extract(audio), self.schema))
            seconds = sum(self._rows[key]["duration"] for key in keys)
            journal.append(tables[-1], bad=batch_bad, seconds=seconds)
            bad |= batch_bad
            on_batch()
        rows = pa.concat_tables(tables)
        rows = rows.take(pc.sort_indices(rows["id"])).combine_chunks()
        rows = with_notes(rows, bad=bad, origin=journal.origin)
        publish(shard_path(self.folder, shard.name), lambda file: write_shard(file, rows))
        journal.remove()
        return len(missing)

    def journal(self, shard: Shard) -> Journal:
        """Journal of a shard."""
        return Journal(self.folder, shard.name, self.schema, origin=self.origins[shard.subset])

    def _loaded(self, ids: list[str]) -> Any:
        """Ids, loaded signals and reasons of bad utterances of each batch."""
        columns = {key: self._num_signals(self._rows[key]) for key in ids}
        sizes = {key: self._rows[key]["duration"] * columns[key] for key in ids}
        batches = list(length_batches(ids, sizes, limit=self.batch_seconds))
        bad: dict[str, str] = {}
        for keys, audio in zip(batches, self._read_ahead(batches, bad=bad), strict=True):
            yield keys, audio, {key: bad.pop(key) for key in keys if key in bad}

    def _num_signals(self, row: Mapping[str, Any]) -> int:
        """How many signals of a row go into a batch."""
        types = self.extractor.columns(row).values()
        return sum(pa.types.is_list(type) for type in types)

    def _load(self, key: str) -> Signals:
        row = self._rows[key]
        try:
            signals = self.extractor.load(row)
        except BadAudioError as error:
            if error.path == row["wav"]:
                raise
            raise BadAudioError(row["wav"], str(error)) from error
        except OSError as error:
            raise BadAudioError(row["wav"], error.strerror or str(error)) from error
        if not {"noise", "reference"} & set(row):
            _check_length(row, signals, sample_rate=self.extractor.sample_rate)
        return signals

    def _extract(self, audio: Mapping[str, Signals]) -> list[dict[str, Any]]:
        """Rows of a batch."""
        if not audio:
            return []
        try:
            values = self.extractor(list(audio.values()))
        except torch.OutOfMemoryError as error:
            raise ShardError(
                f"a batch of {len(audio)} utterances does not fit on the device; run the same "
                f"command with a batch_seconds lower than {self.batch_seconds:g}"
            ) from error
        return [
            {"id": key, "duration": self._rows[key]["duration"]}
            | {label: self._rows[key].get(label) for label in LABELS}
            | columns
            for key, columns in zip(audio, values, strict=True)
        ]


def _check_length(row: Mapping[str, Any], signals: Signals, *, sample_rate: int) -> None:
    expected = resampled_length(
        row["num_samples"], sample_rate=row["sample_rate"], new_sample_rate=sample_rate
    )
    for sig in signals.values():
        if len(sig) != expected:
            raise BadAudioError(
                row["wav"],
                f"{len(sig)} samples, but {expected} in the manifest; prepare the data again",
            )
