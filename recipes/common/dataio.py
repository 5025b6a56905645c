"""From manifests to batches: loading, the policy on bad files, datasets and loaders.

`make_dataset` and `loader_kwargs` turn a manifest of `recipes.common.manifests` into batches of
signals, of features from the feature cache, or of segments of both, and only what a batch needs is
read.

One policy on bad files, ``on_bad_file``: "skip" leaves them out and lists them in ``bad_files.tsv``
(columns path, reason), at preparation where the header shows it and at load time where it does not;
"raise" stops with the file's name.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import load_data_json
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from torch import Tensor

from focalcodec.resampling import (
    check_rate,
    context_periods,
    periods,
    resample,
    resampled_length,
)
from recipes.common.crops import Crops
from recipes.common.files import existing_folder, write_text
from recipes.common.interruption import spare_worker

logger = logging.getLogger(__name__)

_MAX_SAMPLES = 2**40  # a stream of unknown length claims about 2**63
_MAX_BUCKETS = 100
_BATCHES_PER_BUCKET = 3
_MAX_TRIES = 50  # bad utterances in a row before a run gives up: the data are gone, not a file


class BadAudioError(ValueError):
    """A file that cannot be used, with its ``path`` and ``reason``."""

    def __init__(self, path: str | Path, reason: str = "") -> None:
        # torch calls it with one ready-made message when a loader's worker process raises.
        super().__init__(f"{path}: {reason}" if reason else str(path))
        self.path = str(path)
        self.reason = reason


class TooShortError(BadAudioError):
    """A sound file that is too short for what is wanted; many of them do not mean lost data."""


def read_header(path: str | Path) -> tuple[int, int]:
    """Sample rate in Hz and number of samples of a file; BadAudioError if it cannot be used."""
    with _reading(path):
        header = soundfile.info(path)
        return _checked_header(path, header.samplerate, header.frames, header.channels)


def load_sig(
    path: str | Path,
    *,
    sample_rate: int,
    start: int = 0,
    num_samples: int | None = None,
    channel: int | None = None,
) -> Tensor:
    """Load a file, or a part of it, as a mono waveform at ``sample_rate``.

    A part equals the same slice of the whole file, up to rounding when the rate changes, and only
    the part is decoded. Peaks of float files beyond [-1, 1] are kept.

    Parameters
    ----------
    path : anything that libsndfile reads.
    sample_rate : wanted, in Hz.
    start : first sample, counted at ``sample_rate``.
    num_samples : at most so many samples at ``sample_rate``; None = to the end.
    channel : which one to take, from 0; None averages all.

    Returns
    -------
    (T,) float32, T >= 1, finite.

    Raises
    ------
    BadAudioError : if the file is missing, unreadable, truncated, empty (also from ``start`` on) or
        holds non-finite samples.
    """
    end = None if num_samples is None else start + num_samples
    with _reading(path), soundfile.SoundFile(path) as file:
        rate, total = _checked_header(path, file.samplerate, file.frames, file.channels)
        down, up = periods(rate, sample_rate)
        length = resampled_length(total, sample_rate=rate, new_sample_rate=sample_rate)
        end = length if end is None else min(end, length)
        if not 0 <= start < end:
            raise BadAudioError(path, f"no sample in [{start}, {end}): it has {length}")
        # Output block b (`up` samples) needs input block b (`down` samples) and `context` blocks
        # before and after it.
        context = context_periods(rate, sample_rate)
        first_block = max(0, start // up - context)
        first = first_block * down
        last = min(total, ((end - 1) // up + 1 + context) * down)
        if channel is not None and channel >= file.channels:
            raise BadAudioError(path, f"no channel {channel}: it has {file.channels}")
        channels = _read_frames(file, path, first, last)
        sig = channels.mean(1) if channel is None else channels[:, channel].contiguous()
        sig = resample(sig, sample_rate=rate, new_sample_rate=sample_rate)
        sig = sig[start - first_block * up : end - first_block * up]
    if not sig.isfinite().all():
        raise BadAudioError(path, "holds NaN or infinite samples")
    return sig


class SigDataset(DynamicItemDataset):
    """Utterances, whole or as segments, and the policy on bad files.

    An item has ``id``, ``language``, ``num_samples`` = T, and

    ============  =========================================  =====================================
    .             without a cache                            with a cache
    ============  =========================================  =====================================
    whole         ``sig`` (T,)                               ``feats`` (N, H), ``sig`` if wanted
    with crops    ``sig`` (T,), ``frames`` (K, S): where     ``feats`` (K, S, H), and if wanted
                  the K segments of S frames lie             ``segments`` (K, S * hop) of the signal
    ============  =========================================  =====================================

    What a decoder of another rate shall give, ``target`` (T',), is beside ``sig`` where there is a
    ``target_rate``; ``segments`` are cut from it.

    With "skip", an utterance that cannot be loaded is replaced by the next good one, so that
    batches keep their size and the ranks of a distributed run stay in step. Datasets derived from
    it (``filtered_sorted`` and the like) lose the policy: sort and select with `make_dataset`.

    Parameters
    ----------
    entries : manifest, paths filled in; ``num_samples`` counted at ``sample_rate``. Without a
        ``language`` an entry is English.
    sample_rate : Hz.
    on_bad_file : "skip" or "raise".
    bad_files : tsv file to which "skip" appends.
    crops : where segments are cut; None for whole utterances.
    cache : a `recipes.common.feature_cache.FeatureCache` that holds every entry; None for none.
    with_sig : False leaves the signal out, which a cache allows.
    target_rate : of the target, Hz; None or ``sample_rate`` where it is ``sig`` itself.
    """

    def __init__(
        self,
        entries: Mapping[str, dict[str, Any]],
        *,
        sample_rate: int,
        on_bad_file: str = "skip",
        bad_files: str | Path | None = None,
        crops: Crops | None = None,
        cache: Any = None,
        with_sig: bool = True,
        target_rate: int | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.target_rate = target_rate or sample_rate
        self.on_bad_file = check_policy(on_bad_file)
        self.bad_files = bad_files
        self.crops = crops
        self.cache = cache
        super().__init__({key: {"language": "en", **entry} for key, entry in entries.items()})
        keys = ["sig"] if with_sig else []
        self.add_dynamic_item(self._load, takes=["wav", "num_samples"], provides="sig")
        if with_sig and self.target_rate != sample_rate:
            keys.append("target")
            self.add_dynamic_item(self._load_target, takes=["wav"], provides="target")
        if crops is not None and cache is not None:
            takes = ["id", "num_samples"]
            self.add_dynamic_item(self._read_segments, takes=takes, provides="feats")
            self.add_dynamic_item(self._load_segments, takes=[*takes, "wav"], provides="segments")
            keys = ["feats", "segments"] if with_sig else ["feats"]
        elif crops is not None:
            keys.append("frames")
            self.add_dynamic_item(self._frames, takes=["id", "num_samples"], provides="frames")
        elif cache is not None:
            keys.append("feats")
            self.add_dynamic_item(cache.read, takes="id", provides="feats")
        self.set_output_keys(["id", "language", "num_samples", *keys])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Utterance at ``index``, or with "skip" the next one that can be loaded."""
        tries = min(_MAX_TRIES, len(self))
        for offset in range(tries):
            try:
                return super().__getitem__((index + offset) % len(self))
            except BadAudioError as error:
                if self.on_bad_file == "raise":
                    raise
                for item in self.pipeline.dynamic_items:
                    item.reset()
                newly = self.bad_files is None or record_bad_file(self.bad_files, error)
                logger.log(
                    logging.WARNING if newly else logging.DEBUG,
                    "bad file, taking the next utterance instead: %s",
                    error,
                )
                failure = error
        raise BadAudioError(
            failure.path,
            f"{failure.reason}; the {tries} utterances up to this one failed in a row, "
            "so check that data_folder is complete and mounted",
        )

    def _load(self, wav: str, num_samples: int) -> Tensor:
        sig = load_sig(wav, sample_rate=self.sample_rate)
        if len(sig) != num_samples:
            raise BadAudioError(
                wav,
                f"{len(sig)} samples, but {num_samples} in the manifest; prepare the data again",
            )
        return sig

    def _load_target(self, wav: str) -> Tensor:
        return load_sig(wav, sample_rate=self.target_rate)

    def _frames(self, utterance: str, num_samples: int) -> Tensor:
        return self.crops.frames(utterance, total=-(-num_samples // self.crops.hop_length))

    def _read_segments(self, utterance: str, num_samples: int) -> Tensor:
        """Segments of features, of which no more is read than they need."""
        feats = []
        for row in self._frames(utterance, num_samples):
            first, size = _span(row)
            part = self.cache.read(utterance, start=first, num_frames=size)
            feats.append(part[row - first])
        return torch.stack(feats)

    def _load_segments(self, utterance: str, num_samples: int, wav: str) -> Tensor:
        """Segments of the signal, of which no more is read than they need."""
        hop_length = self.crops.hop_length * self.target_rate // self.sample_rate
        segments = []
        for row in self._frames(utterance, num_samples):
            first, size = _span(row)
            sig = load_sig(
                wav,
                sample_rate=self.target_rate,
                start=first * hop_length,
                num_samples=size * hop_length,
            )
            sig = torch.nn.functional.pad(sig, (0, size * hop_length - len(sig)))
            segments.append(sig.view(size, hop_length)[row - first].flatten())
        return torch.stack(segments)


def read_manifest(manifest: str | Path, *, data_folder: str | Path) -> dict[str, dict[str, Any]]:
    """Rows by utterance id, with real paths.

    Parameters
    ----------
    manifest : JSON file from `recipes.common.manifests.write_manifests`.
    data_folder : what ``{data_root}`` stands for.

    Raises
    ------
    FileNotFoundError : if ``data_folder`` is no folder.
    ValueError : if the manifest is empty.
    """
    rows = load_data_json(manifest, {"data_root": str(existing_folder(data_folder))})
    if not rows:
        raise ValueError(
            f"{manifest} holds no utterance; name splits for this subset and prepare the data again"
        )
    return rows


def make_dataset(
    manifest: str | Path,
    *,
    data_folder: str | Path,
    sample_rate: int,
    on_bad_file: str = "skip",
    bad_files: str | Path | None = None,
    sorting: str = "random",
    max_utterances: int | None = None,
    **options: Any,
) -> SigDataset:
    """Make the dataset of one manifest.

    Parameters
    ----------
    manifest : JSON file from `recipes.common.manifests.write_manifests`.
    data_folder : what ``{data_root}`` stands for.
    sample_rate : of the signals, in Hz.
    on_bad_file : "skip" or "raise".
    bad_files : tsv file to which "skip" appends one line for each file; None = only a warning.
    sorting : "ascending" or "descending" by duration; "random" keeps the order of ids and leaves
        shuffling to the loader.
    max_utterances : keep only the first ones, in the order of ids.
    options : further arguments of `SigDataset`; with a cache, utterances that were bad when it was
        made are left out.

    Raises
    ------
    ValueError : if the manifest is empty or names mixtures, or ``sorting`` is none of the three.
    """
    if sorting not in ("random", "ascending", "descending"):
        raise ValueError(f"sorting must be random, ascending or descending, got {sorting!r}")
    entries = read_manifest(manifest, data_folder=data_folder)
    if mixed := [utt_id for utt_id, entry in entries.items() if "noise" in entry]:
        raise ValueError(
            f"{manifest}: {mixed[0]} is to be mixed with noise, which is for evaluation "
            "(recipes.common.mixing); train on files that are noisy already"
        )
    bad = getattr(options.get("cache"), "bad", {})
    ids = [utt_id for utt_id in sorted(entries) if utt_id not in bad][:max_utterances]
    if sorting != "random":
        ids.sort(key=lambda utt_id: entries[utt_id]["duration"], reverse=sorting == "descending")
    for entry in entries.values():
        entry["num_samples"] = resampled_length(
            entry["num_samples"],
            sample_rate=entry["sample_rate"],
            new_sample_rate=sample_rate,
        )
        entry.setdefault("text", None)
    return SigDataset(
        {utt_id: entries[utt_id] for utt_id in ids},
        sample_rate=sample_rate,
        on_bad_file=on_bad_file,
        bad_files=bad_files,
        **options,
    )


def bucket_sampler(
    dataset: DynamicItemDataset, *, batch_seconds: float, seed: int
) -> DynamicBatchSampler:
    """Batches of utterances of similar length, up to so many seconds each with padding.

    Buckets hold equal shares of the utterances; members and order of the batches are drawn anew in
    every epoch, from seed and epoch alone.

    Raises
    ------
    ValueError : if the longest utterance does not fit.
    """
    durations = sorted(dataset.data[utt_id]["duration"] for utt_id in dataset.data_ids)
    if batch_seconds < durations[-1]:
        raise ValueError(
            f"batch_seconds is {batch_seconds:g}, but the longest utterance has "
            f"{durations[-1]:.1f} s; raise it, or lower max_duration_s"
        )
    # Enough buckets for little padding, not more than leave each a few batches an epoch.
    batches = sum(durations) / batch_seconds
    number = max(1, min(_MAX_BUCKETS, int(batches / _BATCHES_PER_BUCKET)))
    borders = {durations[len(durations) * i // number - 1] for i in range(1, number + 1)}
    return DynamicBatchSampler(
        dataset,
        max_batch_length=batch_seconds,
        bucket_boundaries=sorted(borders),
        shuffle=True,
        batch_ordering="random",
        seed=seed,
    )


def collate(examples: list[dict[str, Any]]) -> PaddedBatch:
    """Batch of `SigDataset`'s items: ``id`` and ``language`` (lists), ``num_samples`` (B,), audio.

    ``sig.data`` (B, T) is zero-padded, ``sig.lengths`` (B,) are relative, and so on.
    """
    return PaddedBatch(examples)


def loader_kwargs(*, seed: int, num_workers: int = 0, **options: Any) -> dict[str, Any]:
    """Keyword arguments for ``Brain.make_dataloader`` or a ``SaveableDataLoader``.

    Without a generator of its own ``iter(loader)`` draws a number from the global random state, and
    a resumed run then differs from an uninterrupted one. Call once for each loader. The order comes
    from the sampler (SpeechBrain's ``ReproducibleRandomSampler`` under ``shuffle=True``).

    Parameters
    ----------
    seed : of the loader's generator.
    num_workers : processes; torch lets each compute on one thread.
    options : further arguments, such as batch_size, shuffle, drop_last, sampler, pin_memory.
    """
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "generator": torch.Generator().manual_seed(seed),
        "worker_init_fn": spare_worker if num_workers else None,
        **options,
    }


def check_policy(on_bad_file: str) -> str:
    """Give the policy back; ValueError if it is none."""
    if on_bad_file not in ("skip", "raise"):
        raise ValueError(f"on_bad_file must be skip or raise, got {on_bad_file!r}")
    return on_bad_file


def keep_bad_files(
    bad_files: str | Path, reasons: Mapping[str, str], *, among: Collection[str]
) -> None:
    """Start the list with these files, reason by path; of what it held, keep those ``among``."""
    lines = [_tsv_line(*pair) for pair in reasons.items()]
    paths = {_tsv_line(path, "").removesuffix("\t\n") for path in among}
    lines += [_tsv_line(*pair) for pair in read_bad_files(bad_files).items() if pair[0] in paths]
    write_text(Path(bad_files), "".join(lines))


def record_bad_file(bad_files: str | Path, error: BadAudioError) -> bool:
    """Append one line for a file that failed, unless it is listed already; True if it was new."""
    line = _tsv_line(error.path, error.reason).encode()
    known = line.split(b"\t")[0] + b"\t"
    descriptor = os.open(bad_files, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with open(descriptor, "r+b", buffering=0) as file:
        # Every rank of a distributed run reads the whole validation set, at the same time.
        fcntl.flock(file, fcntl.LOCK_EX)
        if any(row.startswith(known) for row in file.readlines()):
            return False
        file.write(line)
    return True


def read_bad_files(bad_files: str | Path) -> dict[str, str]:
    """Reason by path from ``bad_files.tsv``; empty without the file."""
    path = Path(bad_files)
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(row.split("\t", 1) for row in rows)


def _span(frames: Tensor) -> tuple[int, int]:
    """First of the frames, and how many there are from it to the last."""
    first = int(frames.min())
    return first, int(frames.max()) - first + 1


def _tsv_line(path: str, reason: str) -> str:
    fields = (path.encode(errors="backslashreplace").decode(), reason)
    return "\t".join(field.translate({9: " ", 10: " ", 13: " "}) for field in fields) + "\n"


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is being read into a BadAudioError that names it."""
    # Opening a named pipe would wait for ever; libsndfile calls a missing file a "System error".
    if not os.path.isfile(path):
        raise BadAudioError(path, "no such file")
    try:
        yield
    except BadAudioError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise BadAudioError(path, reason) from error


def _checked_header(
    path: str | Path, sample_rate: int, num_samples: int, channels: int
) -> tuple[int, int]:
    try:
        check_rate(sample_rate)
    except ValueError as error:
        raise BadAudioError(path, str(error)) from error
    if num_samples < 1 or channels < 1:
        raise BadAudioError(path, f"empty: {num_samples} samples, {channels} channels")
    if num_samples > _MAX_SAMPLES:
        raise BadAudioError(path, "the header does not tell the length; write the file again")
    return sample_rate, num_samples


def _read_frames(file: soundfile.SoundFile, path: str | Path, first: int, last: int) -> Tensor:
    """Read samples [first, last) of all channels as (samples, channels) float32."""
    # libsndfile cannot seek in GSM, and Opus decoded from the middle differs by 1e-3.
    position = 0 if not file.seekable() or file.subtype == "OPUS" else first
    if position:
        file.seek(position)
    frames = torch.from_numpy(file.read(last - position, dtype="float32", always_2d=True))
    if len(frames) < last - position:
        raise BadAudioError(
            path, f"truncated: {file.frames} samples announced, {position + len(frames)} there"
        )
    return frames[first - position :]
