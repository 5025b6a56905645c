"""From a folder of audio files to manifests: splits, headers, limits, draws.

First step of both stages. A module of ``recipes.corpora`` lists its utterances; `write_manifests`
reads their headers and writes ``{train,valid,test}.json`` and ``bad_files.tsv`` into the output
folder (the user's data are only ever read). `recipes.common.dataio` loads what they name.

A manifest is JSON, one utterance a line, sorted by id, for SpeechBrain's ``DynamicItemDataset``::

    {"84_121123_000007": {"wav": "{data_root}/dev-clean/84/...wav", "duration": 3.2,
                          "num_samples": 76800, "sample_rate": 24000, "speaker": "84",
                          "text": "only where it is known"}}

Bad files follow the policy of `recipes.common.dataio`, here as far as their headers show it. Files
outside the duration limits are left out and listed either way.
"""

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from focalcodec.audio import AUDIO_SUFFIXES
from recipes.common.dataio import (
    BadAudioError,
    check_policy,
    keep_bad_files,
    read_header,
)
from recipes.common.files import existing_folder, folder_outside, write_text

logger = logging.getLogger(__name__)

SUBSETS = ("train", "valid", "test")


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

    Files that an earlier start of the run found bad when it loaded them stay listed.

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
    folder = folder_outside(save_folder, root)
    check_policy(on_bad_file)
    limits = dict(
        zip(SUBSETS, (max_train_utterances, max_valid_utterances, max_test_utterances), strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, SubsetCounts] = {}
    left_out: dict[str, str] = {}  # path -> reason, of all subsets
    earlier = read_data_files(folder)
    known = {
        row["wav"]
        for subset in SUBSETS
        for row in json.loads(earlier.get(_manifest_name(subset), "{}")).values()
    }
    still_there: set[str] = set()
    for subset in SUBSETS:
        entries, bad = _read_entries(subsets.get(subset) or [], read_text, subset, on_bad_file)
        passed, too_short, too_long = _filter(entries, min_duration_s, max_duration_s)
        drawn = _draw(passed, limits[subset], seed)
        left_out |= bad | too_short | too_long
        rows = {utt_id: _row(entry, root) for utt_id, entry in drawn.items()}
        still_there |= {drawn[utt_id]["wav"] for utt_id, row in rows.items() if row["wav"] in known}
        counts[subset] = SubsetCounts(
            utterances=len(drawn),
            hours=sum(entry["duration"] for entry in drawn.values()) / 3600,
            speakers=len({entry["speaker"] for entry in drawn.values()}),
            bad=len(bad),
            too_short=len(too_short),
            too_long=len(too_long),
            not_drawn=len(passed) - len(drawn),
        )
        write_text(folder / _manifest_name(subset), _manifest_text(rows))
    keep_bad_files(folder / "bad_files.tsv", left_out, among=still_there)
    for subset, count in counts.items():
        logger.info(
            "%s: %d utterances, %.4g hours, %d speakers; left out: %d bad, %d too short, "
            "%d too long, %d not drawn",
            subset,
            *count,
        )
        if subsets.get(subset) is not None and not count.utterances:
            raise ValueError(_nothing_left(subset, subsets[subset], count, folder))
    return PreparedCorpus(**counts)


def read_data_files(folder: Path) -> dict[str, str]:
    """Texts of manifests and ``bad_files.tsv``, as far as the folder has them, by file name."""
    paths = [folder / name for name in (*map(_manifest_name, SUBSETS), "bad_files.tsv")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.exists()}


def refuse_changed(folder: Path, *, earlier: Mapping[str, str]) -> None:
    """Raise ValueError if the folder's manifests are not the earlier ones, which are put back.

    Parameters
    ----------
    folder : of the run.
    earlier : what `read_data_files` gave before the manifests were written anew.
    """
    found = read_data_files(folder)
    changes = []
    for subset in SUBSETS:
        before, now = (
            json.loads(texts.get(_manifest_name(subset), "{}")) for texts in (earlier, found)
        )
        changes += [
            _listed(f"{subset} lost", before.keys() - now.keys()),
            _listed(f"{subset} gained", now.keys() - before.keys()),
            _listed(
                f"{subset} has changed", (k for k in before if k in now and before[k] != now[k])
            ),
        ]
    changes = [change for change in changes if change is not None]
    if not changes:
        return
    known = earlier.get("bad_files.tsv", "").splitlines()
    bad = [row for row in found["bad_files.tsv"].splitlines() if row not in known]
    if bad:
        changes.append("left out: " + ", ".join(bad[:3]).replace("\t", ": "))
    for name, text in earlier.items():
        write_text(folder / name, text)
    raise ValueError(
        f"the data are not those that the run in {folder} began with: {'; '.join(changes)}. Put "
        "them back, go on with what is there by --on_changed_data accept, or choose another folder "
        "with --output_folder"
    )


def _listed(what: str, ids: Iterable[str]) -> str | None:
    ids = sorted(ids)
    shown = ", ".join(ids[:3]) + ", ..." * (len(ids) > 3)
    return f"{what} {len(ids)} utterances ({shown})" if ids else None


def _manifest_name(subset: str) -> str:
    return f"{subset}.json"


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
    sample_rate, num_samples = read_header(path)
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


def _row(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Entry as it is written: with the path below ``{data_root}``."""
    # SpeechBrain runs str.format_map over every string of a manifest: braces must be doubled.
    row = {k: _double_braces(v) if isinstance(v, str) else v for k, v in entry.items()}
    relative = Path(entry["wav"]).relative_to(root).as_posix()
    return row | {"wav": "{data_root}/" + _double_braces(relative)}


def _manifest_text(rows: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        f"{json.dumps(utt_id, ensure_ascii=False)}: {json.dumps(row, ensure_ascii=False)}"
        for utt_id, row in rows.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _double_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _nothing_left(
    subset: str, utterances: Sequence[Utterance] | None, count: SubsetCounts, folder: Path
) -> str:
    return (
        f"no utterance left in subset '{subset}': of {len(utterances or ())} audio files "
        f"{count.bad} are bad, {count.too_short} shorter than min_duration_s, {count.too_long} "
        f"longer than max_duration_s, {count.not_drawn} not drawn; see {folder / 'bad_files.tsv'}"
    )
