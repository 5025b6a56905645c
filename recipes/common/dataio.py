"""From a folder of audio files to batches: manifests, loading, the policy on bad files, loaders.

First step of both stages. A module of ``recipes.corpora`` lists its utterances; `write_manifests`
reads their headers and writes ``{train,valid,test}.json`` and ``bad_files.tsv`` into the output
folder (the user's data are only ever read); `make_dataset` and `loader_kwargs` turn a manifest into
batches of ``sig`` and ``lens``.

A manifest is JSON, one utterance a line, sorted by id, for SpeechBrain's ``DynamicItemDataset``::

    {"84_121123_000007": {"wav": "{data_root}/dev-clean/84/...wav", "duration": 3.2,
                          "num_samples": 76800, "sample_rate": 24000, "speaker": "84",
                          "text": "only where it is known"}}

One policy on bad files, ``on_bad_file``: "skip" leaves them out and lists them in ``bad_files.tsv``
(columns path, reason), at preparation where the header shows it and at load time where it does not;
"raise" stops with the file's name. Files outside the duration limits are left out and listed either
way.
"""

import contextlib
import fcntl
import functools
import json
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
import torchaudio
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import load_data_json
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor
from tqdm import tqdm

logger = logging.getLogger(__name__)

# What libsndfile reads, and in the second line what it does not: listed as bad, not overlooked.
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .voc "
    ".m4a .aac .wma .webm .amr .raw".split()
)
SUBSETS = ("train", "valid", "test")

_RATE_RANGE_HZ = (1_000, 768_000)  # outside of it the header is wrong, whatever it says
_MAX_SAMPLES = 2**40  # a stream of unknown length claims about 2**63
_MAX_KERNEL_SIZE = 2**24  # entries; 44,100 -> 16,000 Hz has 8e4, 22,051 -> 16,000 Hz (coprime) 4e8
_MAX_TRIES = 50  # bad utterances in a row before a run gives up: the data are gone, not a file


class BadAudioError(ValueError):
    """A file that cannot be used, with its ``path`` and ``reason``."""

    def __init__(self, path: str | Path, reason: str = "") -> None:
        # torch calls it with one ready-made message when a loader's worker process raises.
        super().__init__(f"{path}: {reason}" if reason else str(path))
        self.path = str(path)
        self.reason = reason


class Utterance(NamedTuple):
    """One audio file of a corpus before its header was read."""

    path: Path
    id: str
    speaker: str


class SubsetCounts(NamedTuple):
    """What became of the files of one subset."""

    utterances: int
    hours: float
    speakers: int
    bad: int
    too_short: int
    too_long: int
    not_drawn: int


class PreparedCorpus(NamedTuple):
    """Counts of the three manifests that were written."""

    train: SubsetCounts
    valid: SubsetCounts
    test: SubsetCounts


def list_splits(
    data_folder: str | Path,
    *,
    corpus: str,
    splits: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
    suffixes: Collection[str],
    describe: Callable[[Path], tuple[str, str]] | None = None,
) -> dict[str, list[Utterance] | None]:
    """List the audio files of named split folders.

    Parameters
    ----------
    data_folder : root of the corpus.
    corpus : its name in error messages.
    splits : folders below ``data_folder`` for train, valid and test; empty = not wanted.
    suffixes : of the files to take, lower case with the dot.
    describe : ``describe(path relative to data_folder) -> (utterance id, speaker)``; by default of
        ``<split>/<speaker>/<chapter>/<utterance id>.<suffix>``.

    Returns
    -------
    Utterances of each subset, sorted by path; None where no split is named.

    Raises
    ------
    FileNotFoundError : if the data folder or a split is missing.
    ValueError : if splits are not a list of plain folder names.
    """
    root = existing_folder(data_folder)
    names_of = dict(zip(SUBSETS, splits, strict=True))
    _check_splits(names_of)
    describe = describe or _describe_chapter_layout
    return {
        subset: [
            Utterance(path, *describe(path.relative_to(root)))
            for name in names
            for path in find_audio(_split_folder(root, name, corpus, subset), suffixes=suffixes)
        ]
        if names
        else None
        for subset, names in names_of.items()
    }


def find_audio(folder: Path, *, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """List the audio files below ``folder``, sorted.

    Hidden files and folders (``._a.wav``) are ignored, links are followed.
    """
    return sorted(_walk(folder, suffixes, frozenset()))


def existing_folder(data_folder: str | Path) -> Path:
    """Absolute path of the data folder; FileNotFoundError if it is none."""
    root = Path(data_folder).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_folder {data_folder} is not a folder; give the path of the unpacked corpus"
        )
    return root


def read_text_beside(path: Path, *, suffix: str = ".normalized.txt") -> str | None:
    """Text of ``<utterance><suffix>`` beside an audio file, white space collapsed; None without."""
    transcript = path.with_name(path.stem + suffix)
    try:
        text = transcript.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return " ".join(text.split()) or None


def write_manifests(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    subsets: Mapping[str, Sequence[Utterance] | None],
    read_text: Callable[[Path], str | None],
    min_duration_s: float,
    max_duration_s: float,
    max_train_utterances: int | None = None,
    max_valid_utterances: int | None = None,
    max_test_utterances: int | None = None,
    on_bad_file: str = "skip",
    seed: int = 0,
) -> PreparedCorpus:
    """Read all headers, filter, and write manifests and ``bad_files.tsv`` into ``save_folder``.

    Parameters
    ----------
    data_folder : what ``{data_root}`` stands for in the manifests; never written to.
    save_folder : of the run, outside of ``data_folder``.
    subsets : utterances for each of "train", "valid", "test"; None writes an empty manifest.
    read_text : transcript of an audio file, or None.
    min_duration_s, max_duration_s : limits in seconds, both included.
    max_train_utterances, max_valid_utterances, max_test_utterances : draw at most so many of those
        that pass; None = all.
    on_bad_file : "skip" or "raise".
    seed : of the draws; they neither use nor change a global random state.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    BadAudioError : with "raise", for the first bad file.
    ValueError : if nothing is left of a wanted subset, or ``save_folder`` lies in ``data_folder``.
    """
    root = existing_folder(data_folder)
    folder = _outside(save_folder, root)
    _check_policy(on_bad_file)
    limits = dict(
        zip(SUBSETS, (max_train_utterances, max_valid_utterances, max_test_utterances), strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, SubsetCounts] = {}
    left_out: dict[str, str] = {}  # path -> reason, of all subsets
    for subset in SUBSETS:
        entries, bad = _read_entries(subsets.get(subset) or [], read_text, subset, on_bad_file)
        passed, too_short, too_long = _filter(entries, min_duration_s, max_duration_s)
        drawn = _draw(passed, limits[subset], seed)
        left_out |= bad | too_short | too_long
        counts[subset] = SubsetCounts(
            utterances=len(drawn),
            hours=sum(entry["duration"] for entry in drawn.values()) / 3600,
            speakers=len({entry["speaker"] for entry in drawn.values()}),
            bad=len(bad),
            too_short=len(too_short),
            too_long=len(too_long),
            not_drawn=len(passed) - len(drawn),
        )
        write_text(folder / f"{subset}.json", _manifest_text(drawn, root))
    write_text(folder / "bad_files.tsv", "".join(_tsv_line(*pair) for pair in left_out.items()))
    for subset, count in counts.items():
        logger.info("%s: %s", subset, count)
        if subsets.get(subset) is not None and not count.utterances:
            raise ValueError(_nothing_left(subset, subsets[subset], count, folder))
    return PreparedCorpus(**counts)


def load_sig(
    path: str | Path, *, sample_rate: int, start: int = 0, num_samples: int | None = None
) -> Tensor:
    """Load a file, or a part of it, as a mono waveform at ``sample_rate``.

    Channels are averaged. A part equals the same slice of the whole file, also when the rate
    changes, and only the part is decoded. Peaks of float files beyond [-1, 1] are kept.

    Parameters
    ----------
    path : anything that libsndfile reads.
    sample_rate : wanted, in Hz.
    start : first sample, counted at ``sample_rate``.
    num_samples : at most so many samples at ``sample_rate``; None = to the end.

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
        down, up = _ratio(rate, sample_rate)
        length = -(-up * total // down)
        end = length if end is None else min(end, length)
        if not 0 <= start < end:
            raise BadAudioError(path, f"no sample in [{start}, {end}): it has {length}")
        # Output block b (`up` samples) needs input block b (`down` samples) and `context` blocks
        # before and after it.
        context = 0 if rate == sample_rate else -(-_resampler(rate, sample_rate).width // down)
        first_block = max(0, start // up - context)
        first = first_block * down
        last = min(total, ((end - 1) // up + 1 + context) * down)
        sig = _read_frames(file, path, first, last).mean(1)
        sig = resample(sig, sample_rate=rate, new_sample_rate=sample_rate)
        sig = sig[start - first_block * up : end - first_block * up]
    if not sig.isfinite().all():
        raise BadAudioError(path, "holds NaN or infinite samples")
    return sig


def resample(sig: Tensor, *, sample_rate: int, new_sample_rate: int) -> Tensor:
    """Resample by windowed-sinc interpolation (torchaudio), with a cached kernel for each ratio.

    Parameters
    ----------
    sig : (..., T) float32.
    sample_rate, new_sample_rate : in Hz.

    Returns
    -------
    (..., ceil(T * new_sample_rate / sample_rate)).

    Raises
    ------
    ValueError : if the rates have so small a common divisor that the kernel would take gigabytes.
    """
    if sample_rate == new_sample_rate:
        return sig
    down, up = _ratio(sample_rate, new_sample_rate)
    # torchaudio rounds the length in float32, wrong from 2**24 samples on: make more, cut exactly.
    padded = torch.nn.functional.pad(sig, (0, down * (1 + 64 // up)))
    return _resampler(sample_rate, new_sample_rate)(padded)[..., : -(-up * sig.shape[-1] // down)]


class SigDataset(DynamicItemDataset):
    """Utterances with ``id``, ``sig`` (T,), ``num_samples`` = T, and the policy on bad files.

    With "skip", an utterance that cannot be loaded is replaced by the next good one, so that
    batches keep their size and the ranks of a distributed run stay in step. Datasets derived from
    it (``filtered_sorted`` and the like) lose the policy: sort and select with `make_dataset`.

    Parameters
    ----------
    entries : manifest, paths filled in; ``num_samples`` counted at ``sample_rate``.
    sample_rate : Hz.
    on_bad_file : "skip" or "raise".
    bad_files : tsv file to which "skip" appends.
    """

    def __init__(
        self,
        entries: Mapping[str, dict[str, Any]],
        *,
        sample_rate: int,
        on_bad_file: str = "skip",
        bad_files: str | Path | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.on_bad_file = _check_policy(on_bad_file)
        self.bad_files = bad_files
        super().__init__(dict(entries))
        self.add_dynamic_item(self._load, takes=["wav", "num_samples"], provides="sig")
        self.set_output_keys(["id", "sig", "num_samples"])

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


def make_dataset(
    manifest: str | Path,
    *,
    data_folder: str | Path,
    sample_rate: int,
    on_bad_file: str = "skip",
    bad_files: str | Path | None = None,
    sorting: str = "random",
    max_utterances: int | None = None,
) -> SigDataset:
    """Make the dataset of one manifest.

    Parameters
    ----------
    manifest : JSON file from :func:`write_manifests`.
    data_folder : what ``{data_root}`` stands for.
    sample_rate : of the signals, in Hz.
    on_bad_file : "skip" or "raise".
    bad_files : tsv file to which "skip" appends one line for each file; None = only a warning.
    sorting : "ascending" or "descending" by duration; "random" keeps the order of ids and leaves
        shuffling to the loader.
    max_utterances : keep only the first ones, in the order of ids.

    Raises
    ------
    ValueError : if the manifest is empty or ``sorting`` is none of the three.
    """
    if sorting not in ("random", "ascending", "descending"):
        raise ValueError(f"sorting must be random, ascending or descending, got {sorting!r}")
    root = existing_folder(data_folder)
    entries = load_data_json(manifest, {"data_root": str(root)})
    if not entries:
        raise ValueError(
            f"{manifest} holds no utterance; name splits for this subset and prepare the data again"
        )
    ids = sorted(entries)[:max_utterances]
    if sorting != "random":
        ids.sort(key=lambda utt_id: entries[utt_id]["duration"], reverse=sorting == "descending")
    for entry in entries.values():
        down, up = _ratio(entry["sample_rate"], sample_rate)
        entry["num_samples"] = -(-up * entry["num_samples"] // down)
        entry.setdefault("text", None)
    return SigDataset(
        {utt_id: entries[utt_id] for utt_id in ids},
        sample_rate=sample_rate,
        on_bad_file=on_bad_file,
        bad_files=bad_files,
    )


def collate(examples: list[dict[str, Any]]) -> PaddedBatch:
    """Batch with ``id`` (list), ``sig.data`` (B, T), ``sig.lengths`` (B,), ``num_samples`` (B,).

    ``sig.data`` is zero-padded, ``sig.lengths`` are relative.
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
        **options,
    }


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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; leave it alone if it already holds this text."""
    encoded = text.encode()
    if path.exists() and path.read_bytes() == encoded:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _check_policy(on_bad_file: str) -> str:
    if on_bad_file not in ("skip", "raise"):
        raise ValueError(f"on_bad_file must be skip or raise, got {on_bad_file!r}")
    return on_bad_file


def _check_splits(splits: Mapping[str, Sequence[str] | None]) -> None:
    named = []
    for subset, names in splits.items():
        if isinstance(names, str):
            raise ValueError(
                f"{subset}_splits must be a list of folders, got {names!r}; write [{names}]"
            )
        for name in names or ():
            if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
                raise ValueError(
                    f"{subset}_splits must be names of folders in data_folder, got {name!r}"
                )
        named += set(names or ())
    for name in (name for name, count in Counter(named).items() if count > 1):
        logger.warning("split '%s' is in more than one of train, valid and test", name)


def _describe_chapter_layout(path: Path) -> tuple[str, str]:
    return path.stem, path.parts[max(0, len(path.parts) - 3)]


def _split_folder(root: Path, name: str, corpus: str, subset: str) -> Path:
    folder = root / name
    if folder.is_dir():
        return folder
    present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    deeper = [below for below in present if (root / below / name).is_dir()]
    hint = f"; it is in {root / deeper[0]}: give that as data_folder" if deeper else ""
    raise FileNotFoundError(
        f"{corpus} split '{name}' not found in {root}; unpack it there or remove it from "
        f"{subset}_splits (folders there: {', '.join(present[:20]) or 'none'}){hint}"
    )


def _walk(folder: Path, suffixes: Collection[str], above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), suffixes, above | {real})
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in suffixes:
            yield Path(entry.path)


def _outside(save_folder: str | Path, root: Path) -> Path:
    folder = Path(save_folder).expanduser().resolve()
    if folder.is_relative_to(root):
        raise ValueError(
            f"save_folder {folder} lies inside data_folder {root}, and nothing is ever written "
            "there; choose an output_folder elsewhere"
        )
    return folder


def _read_entries(
    utterances: Sequence[Utterance],
    read_text: Callable[[Path], str | None],
    subset: str,
    on_bad_file: str,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Entries by id (with real paths) and reasons by path; headers are read in threads."""

    def read(utterance: Utterance) -> dict[str, Any] | BadAudioError:
        try:
            return _read_entry(utterance, read_text)
        except BadAudioError as error:
            return error

    entries: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        results = tqdm(
            pool.map(read, utterances),
            total=len(utterances),
            desc=f"{subset}: headers",
            unit="file",
            disable=None,
        )
        for utterance, entry in zip(utterances, results, strict=True):
            if not isinstance(entry, BadAudioError) and utterance.id in entries:
                entry = BadAudioError(
                    utterance.path, f"id {utterance.id} is taken by {entries[utterance.id]['wav']}"
                )
            if isinstance(entry, BadAudioError):
                if on_bad_file == "raise":
                    pool.shutdown(cancel_futures=True)
                    raise entry
                failed[entry.path] = entry.reason
            else:
                entries[utterance.id] = entry
    return entries, failed


def _read_entry(utterance: Utterance, read_text: Callable[[Path], str | None]) -> dict[str, Any]:
    path = utterance.path
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BadAudioError(path, "the file's name is not UTF-8; rename it") from None
    with _reading(path):
        header = soundfile.info(path)
        sample_rate, num_samples = _checked_header(
            path, header.samplerate, header.frames, header.channels
        )
    text = read_text(path)
    return {
        "wav": str(path),
        "duration": num_samples / sample_rate,
        "num_samples": num_samples,
        "sample_rate": sample_rate,
        "speaker": utterance.speaker,
        **({} if text is None else {"text": text}),
    }


def _filter(
    entries: Mapping[str, dict[str, Any]], min_duration_s: float, max_duration_s: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, str]]:
    """Entries within the limits, and reasons by path of those that are too short and too long."""
    passed: dict[str, dict[str, Any]] = {}
    too_short: dict[str, str] = {}
    too_long: dict[str, str] = {}
    for utt_id, entry in entries.items():
        duration = entry["duration"]
        if duration < min_duration_s:
            too_short[entry["wav"]] = f"too short: {duration:.3f} s < {min_duration_s} s"
        elif duration > max_duration_s:
            too_long[entry["wav"]] = f"too long: {duration:.3f} s > {max_duration_s} s"
        else:
            passed[utt_id] = entry
    return passed, too_short, too_long


def _draw(entries: Mapping[str, Any], limit: int | None, seed: int) -> dict[str, Any]:
    """At most ``limit`` entries, sorted by id; a larger limit draws a superset."""
    ids = sorted(entries)
    if limit is not None and limit < len(ids):
        random.Random(seed).shuffle(ids)
        ids = sorted(ids[:limit])
    return {utt_id: entries[utt_id] for utt_id in ids}


def _manifest_text(entries: Mapping[str, dict[str, Any]], root: Path) -> str:
    lines = []
    for utt_id, entry in entries.items():
        # SpeechBrain runs str.format_map over every string of a manifest: braces must be doubled.
        row = {k: _double_braces(v) if isinstance(v, str) else v for k, v in entry.items()}
        relative = Path(entry["wav"]).relative_to(root).as_posix()
        row["wav"] = "{data_root}/" + _double_braces(relative)
        lines.append(
            f"{json.dumps(utt_id, ensure_ascii=False)}: {json.dumps(row, ensure_ascii=False)}"
        )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _double_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _tsv_line(path: str, reason: str) -> str:
    fields = (path.encode(errors="backslashreplace").decode(), reason)
    return "\t".join(field.translate({9: " ", 10: " ", 13: " "}) for field in fields) + "\n"


def _nothing_left(
    subset: str, utterances: Sequence[Utterance] | None, count: SubsetCounts, folder: Path
) -> str:
    return (
        f"no utterance left in subset '{subset}': of {len(utterances or ())} audio files "
        f"{count.bad} are bad, {count.too_short} shorter than min_duration_s, {count.too_long} "
        f"longer than max_duration_s, {count.not_drawn} not drawn; see {folder / 'bad_files.tsv'}"
    )


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
    lowest, highest = _RATE_RANGE_HZ
    if not lowest <= sample_rate <= highest:
        raise BadAudioError(path, f"sample rate {sample_rate} Hz is not in [{lowest}, {highest}]")
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


def _ratio(sample_rate: int, new_sample_rate: int) -> tuple[int, int]:
    divisor = math.gcd(sample_rate, new_sample_rate)
    return sample_rate // divisor, new_sample_rate // divisor


@functools.lru_cache(maxsize=16)
def _resampler(sample_rate: int, new_sample_rate: int) -> torchaudio.transforms.Resample:
    down, up = _ratio(sample_rate, new_sample_rate)
    if up * (down + 13 * max(1, down / up)) > _MAX_KERNEL_SIZE:
        raise ValueError(
            f"cannot resample {sample_rate} Hz to {new_sample_rate} Hz: their common divisor is "
            f"only {math.gcd(sample_rate, new_sample_rate)}; convert the file to a usual rate"
        )
    return torchaudio.transforms.Resample(sample_rate, new_sample_rate)
