"""Finished batches of an unfinished shard, so that a kill loses no more than the one at work.

A part is a file beside the shard that appears whole; its name tells how many seconds of audio it
holds, and so progress is read off the names. Whoever holds the shard's lock may write.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from recipes.common.disk import publish
from recipes.common.shards.format import bad_of, origin_of, with_notes


class Journal:
    """Parts of one shard.

    Parameters
    ----------
    folder : of the shards.
    name : of the shard.
    schema : of its rows.
    origin : what they are made of; parts of another origin are not read.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, *, origin: str) -> None:
        self.folder = folder / ".parts" / name
        self.schema = schema
        self.origin = origin
        self._next = 0

    def read(self, *, is_newer: Callable[[str, int], bool]) -> tuple[pa.Table, dict[str, str]]:
        """Rows of all parts, and reasons by id of what has none.

        Parameters
        ----------
        is_newer : whether the audio of an utterance was written after a time (ns): then what the
            part of that time says of it is left out.
        """
        tables, bad = [self.schema.empty_table()], {}
        for number, path in sorted(_parts(self.folder).items()):
            try:
                table = pa.ipc.open_file(path).read_all()
            except pa.ArrowInvalid:  # a damaged disk: these utterances are computed again
                path.unlink()
                continue
            self._next = number + 1
            if origin_of(table.schema) != self.origin:
                continue
            time = path.stat().st_mtime_ns
            keep = [not is_newer(key, time) for key in table["id"].to_pylist()]
            tables.append(table.filter(pa.array(keep, pa.bool_())).replace_schema_metadata(None))
            found = bad_of(table.schema)
            bad |= {key: reason for key, reason in found.items() if not is_newer(key, time)}
        return pa.concat_tables(tables), bad

    def append(self, table: pa.Table, *, bad: Mapping[str, str], seconds: float) -> None:
        """Keep the rows of a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = with_notes(table, bad=bad, origin=self.origin)

        def write(file: object) -> None:
            with pa.ipc.new_file(file, content.schema) as writer:
                writer.write_table(content)

        publish(self.folder / f"{self._next:05d}-{round(1000 * seconds)}.arrow", write)
        self._next += 1

    def remove(self) -> None:
        """Remove all parts, and what dead processes have left of others."""
        shutil.rmtree(self.folder, ignore_errors=True)


def journaled_seconds(folder: Path, name: str) -> float:
    """Seconds of audio in the finished batches of a shard."""
    names = [path.stem for path in _parts(folder / ".parts" / name).values()]
    return sum(int(stem.partition("-")[2]) for stem in names) / 1000


def _parts(folder: Path) -> dict[int, Path]:
    """Files of the parts by number."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # finished, or not begun
        return {}
    found = (re.fullmatch(r"(\d+)-\d+\.arrow", name) for name in names)
    return {int(match[1]): folder / match[0] for match in found if match}
