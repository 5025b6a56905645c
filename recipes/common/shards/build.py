"""Fill a folder with shards, in any number of processes that share it.

Work is divided by the manifests alone, and claimed with ``flock`` on a file for each shard, which
the kernel frees when its holder dies, however it dies (over NFS from version 4 on). Finished
batches of an unfinished shard are kept as well, so the same command goes on where a kill ended the
last one, and the shards are the same, byte for byte. Batches whose audio was written after them are
computed again; finished shards are only reported then.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from recipes.common.audio_progress import AudioProgress
from recipes.common.dataio import keep_bad_files, read_bad_files
from recipes.common.disk import (
    explaining_disk_errors,
    free_bytes,
    publish,
    remove_unpublished,
    size_text,
)
from recipes.common.files import locked_file, remove_leftovers
from recipes.common.shards.encode import ShardEncoder
from recipes.common.shards.extractors import Extractor
from recipes.common.shards.format import (
    BAD_FILES,
    CODEBOOKS,
    DESCRIPTION,
    VERSION,
    ShardError,
    bad_of,
    make_schema,
    origin_of,
    read_description,
    read_metadata,
    shard_path,
    write_description,
)
from recipes.common.shards.journal import journaled_seconds
from recipes.common.shards.plan import (
    Manifest,
    Shard,
    all_columns,
    describe_subsets,
    is_newer,
    origin,
    plan_shards,
    refuse_other_corpus,
)

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 2.0  # seconds between two looks at what the others do


class ShardReport(NamedTuple):
    """What one process did, and what is in the folder now."""

    utterances: int  # tried by this process
    rows: int  # of the subsets, by whomever
    seconds: float  # of audio in the subsets
    wall_seconds: float
    num_bytes: int  # of the subsets' shards
    bad: dict[str, str]  # reason by utterance


def build_shards(
    folder: str | Path,
    manifests: Mapping[str, Manifest],
    *,
    extractor: Extractor,
    device: str | torch.device = "cpu",
    batch_seconds: float = 120.0,
    on_bad_file: str = "skip",
    shard_minutes: float = 60.0,
    progress: bool = True,
) -> ShardReport:
    """Extract what the folder lacks; return when all of it is there.

    Any number of processes, on one machine or on several that share the folder, may call it with
    the same arguments at any time. Another call may add subsets, but not change one.

    Parameters
    ----------
    folder : of the shards, of one corpus and one extractor; made if it is not there.
    manifests : rows by utterance id, by subset, with real paths
        (`recipes.common.dataio.read_manifest`).
    extractor : `Tokens` or `SpeakerVectors`.
    device : the extractor is moved there.
    batch_seconds : limit of a padded batch, in seconds; a longer utterance is a batch of its own.
    on_bad_file : "skip" notes bad audio in its shard, so that it is not tried again, and lists it;
        "raise" stops.
    shard_minutes : of audio in a shard.
    progress : announce the work through ``logging`` and show a bar.

    Raises
    ------
    BadAudioError : with "raise".
    ShardError : if the folder is of another corpus or extractor, if the disk is full, or if many
        files in a row are bad.
    """
    started = time.monotonic()
    build = ShardBuild(
        folder,
        manifests,
        extractor=extractor,
        device=device,
        batch_seconds=batch_seconds,
        on_bad_file=on_bad_file,
        shard_minutes=shard_minutes,
    )
    build.warn_of_newer_audio()
    if progress:
        logger.info("%s", build.announcement())
    with closing(build.progress_bar(enabled=progress)) as bar:
        utterances = build.run(on_batch=bar.update)
        bar.finish()
    return build.finish(utterances=utterances, wall_seconds=time.monotonic() - started)


class ShardBuild:
    """One process at work on a folder.

    Parameters and errors are those of `build_shards`; the folder is made and described at once.
    """

    def __init__(
        self,
        folder: str | Path,
        manifests: Mapping[str, Manifest],
        *,
        extractor: Extractor,
        device: str | torch.device = "cpu",
        batch_seconds: float = 120.0,
        on_bad_file: str = "skip",
        shard_minutes: float = 60.0,
    ) -> None:
        self.folder = Path(folder)
        self.manifests = {subset: rows for subset, rows in manifests.items() if rows}
        self.extractor = extractor
        self.shards = plan_shards(self.manifests, shard_minutes=shard_minutes)
        columns = all_columns(self.manifests, extractor)
        self._refuse_too_large()
        wanted = {
            "version": VERSION,
            "extractor": extractor.description,
            "shard_minutes": shard_minutes,
            "columns": list(columns),
            "subsets": describe_subsets(self.manifests, self.shards),
        }
        origins = {subset: origin(wanted, subset) for subset in self.manifests}
        with self._explaining_disk_errors(), self._locked("plan"):
            self._describe(wanted, origins)
        self.encoder = ShardEncoder(
            self.folder,
            self.manifests,
            extractor=extractor,
            device=device,
            batch_seconds=batch_seconds,
            on_bad_file=on_bad_file,
            schema=make_schema(columns),
            origins=origins,
        )

    @property
    def pending(self) -> list[Shard]:
        """Shards that are not there yet."""
        return [shard for shard in self.shards if not shard_path(self.folder, shard.name).exists()]

    def announcement(self) -> str:
        """One line to show before the start."""
        pending = self.pending
        seconds = sum(shard.seconds for shard in pending) - self._journaled(pending)
        return (
            f"shards {self.folder}: {len(self.shards) - len(pending)} there, {len(pending)} to "
            f"write with {sum(len(shard.ids) for shard in pending)} utterances, "
            f"{seconds / 3600:.2f} h to encode, about {size_text(self._needed_bytes())}, "
            f"{size_text(free_bytes(self.folder))} free"
        )

    def warn_of_newer_audio(self) -> None:
        """Warn where audio was written after the shard that should hold its tokens.

        It may be the same audio, copied again, so nobody but the user can say what to do.
        """
        with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
            found = [shard for shard in pool.map(self._with_newer, self.shards) if shard]
        if found:
            (key, shard), names = found[0], [shard.name for _, shard in found]
            logger.warning(
                "audio of %d shards is newer than they are, such as %s; if it is not the same "
                "audio, remove %s.parquet%s from %s and run the same command",
                len(found),
                self.manifests[shard.subset][key]["wav"],
                ".parquet, ".join(names[:3]),
                ", ..." * (len(names) > 3),
                self.folder,
            )

    def progress_bar(self, *, enabled: bool = True) -> AudioProgress:
        """Bar of what all processes together still have to do."""
        pending = self.pending
        before = self._journaled(pending)

        def seconds_done() -> float:
            left = [shard for shard in pending if not shard_path(self.folder, shard.name).exists()]
            done = sum(shard.seconds for shard in pending) - sum(shard.seconds for shard in left)
            return done + self._journaled(left) - before

        total = sum(shard.seconds for shard in pending) - before
        return AudioProgress("encode", seconds=total, seconds_done=seconds_done, enabled=enabled)

    def run(self, *, on_batch: Callable[[], None]) -> int:
        """Work until every shard is there, by whomever; utterances that this process tried.

        Parameters
        ----------
        on_batch : called after each batch, and at least every other second.
        """
        utterances = 0
        pause = 0.05
        while pending := self.pending:
            done = [self.write(shard, on_batch=on_batch) for shard in pending]
            utterances += sum(number or 0 for number in done)
            if any(number is not None for number in done):
                pause = 0.05
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            on_batch()
        return utterances

    def write(self, shard: Shard, *, on_batch: Callable[[], None]) -> int | None:
        """Claim a shard and write it; utterances that were tried, None if others do or did it."""
        path = shard_path(self.folder, shard.name)
        if path.exists():
            return None
        with self._explaining_disk_errors(), self._locked(shard.name, wait=False) as claimed:
            if not claimed or path.exists():
                return None
            remove_unpublished(self.folder, path.name)
            return self.encoder.write(shard, on_batch=on_batch)

    def finish(self, *, utterances: int = 0, wall_seconds: float = 0.0) -> ShardReport:
        """Count the rows of finished shards, and list bad files."""
        rows, num_bytes = dict.fromkeys(self.manifests, 0), 0
        bad: dict[str, dict[str, str]] = {subset: {} for subset in self.manifests}
        for shard in self.shards:
            path = shard_path(self.folder, shard.name)
            metadata = read_metadata(path)
            rows[shard.subset] += metadata.num_rows
            bad[shard.subset] |= bad_of(metadata.schema.to_arrow_schema())
            num_bytes += path.stat().st_size
            self.encoder.journal(shard).remove()  # of a kill in between
        with self._explaining_disk_errors(), self._locked("plan"):
            content = read_description(self.folder)
            for subset, number in rows.items():
                content["subsets"][subset] |= {"rows": number, "bad": len(bad[subset])}
            write_description(self.folder, content)
            self._list_bad_files(bad)
        return ShardReport(
            utterances,
            sum(rows.values()),
            sum(shard.seconds for shard in self.shards),
            wall_seconds,
            num_bytes,
            {key: reason for reasons in bad.values() for key, reason in reasons.items()},
        )

    def _describe(self, wanted: dict[str, Any], origins: Mapping[str, str]) -> None:
        """Write ``tokens.json`` and codebooks, or compare them; the caller holds the lock."""
        found = read_description(self.folder)
        if found is not None:
            refuse_other_corpus(self.folder, found=found, wanted=wanted)
        else:
            self._refuse_other_origin(origins)
        for name in (CODEBOOKS, DESCRIPTION):
            remove_unpublished(self.folder, name)
        remove_leftovers(self.folder)  # of the list of bad files
        if found is not None:
            if not wanted["subsets"].keys() - found["subsets"].keys():
                return
            wanted = found | {"subsets": found["subsets"] | wanted["subsets"] | found["subsets"]}
        codebooks = self.extractor.codebooks()
        if found is None and codebooks is not None:
            content = save({"codebooks": codebooks})
            publish(self.folder / CODEBOOKS, lambda file: file.write(content))
        write_description(self.folder, wanted)

    def _refuse_other_origin(self, origins: Mapping[str, str]) -> None:
        """Refuse shards that are not ours, where no ``tokens.json`` says whose they are."""
        for shard in self.shards:
            path = shard_path(self.folder, shard.name)
            if not path.exists():
                continue
            if origin_of(read_metadata(path).schema.to_arrow_schema()) != origins[shard.subset]:
                raise ShardError(
                    f"{path} was made from another corpus or by another codec, and there is no "
                    f"{DESCRIPTION}, which would say which; put it back, or choose another folder"
                )

    def _list_bad_files(self, bad: Mapping[str, Mapping[str, str]]) -> None:
        reasons = {
            str(self.manifests[subset][key]["wav"]): reason
            for subset, found in bad.items()
            for key, reason in found.items()
        }
        mine = {str(row["wav"]) for rows in self.manifests.values() for row in rows.values()}
        path = self.folder / BAD_FILES
        if reasons or path.exists():
            keep_bad_files(path, reasons, among=read_bad_files(path).keys() - mine)

    def _refuse_too_large(self) -> None:
        needed, free = self._needed_bytes(), free_bytes(self.folder)
        if needed > free:
            raise ShardError(
                f"{self.folder} needs {size_text(needed)} and {size_text(free)} are free; make "
                "room, or choose a folder on another disk"
            )

    def _needed_bytes(self) -> int:
        rows = (self.manifests[shard.subset][key] for shard in self.pending for key in shard.ids)
        return math.ceil(sum(self.extractor.num_bytes(row) for row in rows))

    def _with_newer(self, shard: Shard) -> tuple[str, Shard] | None:
        """First utterance of a finished shard whose audio is newer, and the shard."""
        try:
            written = shard_path(self.folder, shard.name).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        rows = self.manifests[shard.subset]
        return next(((key, shard) for key in shard.ids if is_newer(rows[key], written)), None)

    def _journaled(self, shards: list[Shard]) -> float:
        return sum(journaled_seconds(self.folder, shard.name) for shard in shards)

    def _locked(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        return locked_file(self.folder / ".locks" / name, wait=wait)

    def _explaining_disk_errors(self) -> AbstractContextManager[None]:
        return explaining_disk_errors(self.folder, needed=self._needed_bytes, refuse=ShardError)
