"""From a folder of audio files to manifests: splits, headers, limits, draws.

First step of training and evaluation. A module of ``recipes.corpora`` lists its utterances;
`write_manifests` reads their headers and writes ``{train,valid,test}.json`` and ``bad_files.tsv``
into the output folder (the user's data are only ever read). `recipes.common.dataio` loads what they
name.

A manifest is JSON, one utterance a line, sorted by id, for SpeechBrain's ``DynamicItemDataset``::

    {"84_121123_000007": {"wav": "{data_root}/dev-clean/84/...wav", "duration": 3.2,
                          "num_samples": 76800, "sample_rate": 24000, "speaker": "84",
                          "text": "only where it is known"}}

Rows have more keys where a task needs them; `recipes.common.mixing` loads the audio they name:

===================== ============================================================================
``language``          ISO 639-1 code of what is spoken; without it, English
``target``            file that decoded audio is compared with; without it, ``wav`` itself. As long
                      as ``wav``, but for voice conversion, where it is another speaker's
``target_2``          file of a mixture's second speaker (``target``: the first), as long as ``wav``
``reference``         file of the voice to convert to, and its ``reference_speaker``
``noise``             file to be mixed with ``wav`` (first channel, at 16 kHz), with the linear
                      factors ``speech_gain`` and ``noise_gain``; the target is then ``wav`` times
                      ``speech_gain``
``snr_db``            signal-to-noise ratio of that mixture, where it was chosen
``emotion``           class of what is heard, such as ``anger``
===================== ============================================================================

A path in the data folder begins with ``{data_root}``; one elsewhere is absolute.

Bad files follow the policy of `recipes.common.dataio`, here as far as their headers show it. Files
outside the duration limits are left out and listed either way.
"""

import functools
import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from recipes.common.corpus_files import SUBSETS, Utterance
from recipes.common.dataio import (
    BadAudioError,
    check_policy,
    keep_bad_files,
    read_header,
)
from recipes.common.files import existing_folder, folder_outside, write_text
from recipes.common.known_data import manifest_name, read_data_files

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


class _Chosen(NamedTuple):
    """Entries of one subset by id (with real paths), reasons by path of the others, counts."""

    entries: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    counts: SubsetCounts


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
    left_out: Mapping[str, str] | None = None,
    complete: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None,
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
    left_out : reason by path of files that the corpus has left out itself; they are listed, too.
    complete : ``complete(utterance id, row)`` gives the row of an utterance that is drawn, with
        what can only be said after reading its samples; paths in it are real ones. A BadAudioError
        makes the utterance bad.

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
    known = _known_files(folder)
    counts: dict[str, SubsetCounts] = {}
    listed = dict(left_out or {})  # path -> reason, of all subsets
    still_there: set[str] = set()
    for subset in SUBSETS:
        chosen = _choose(
            subset,
            subsets.get(subset) or [],
            read_text=read_text,
            durations_s=(min_duration_s, max_duration_s),
            limit=limits[subset],
            on_bad_file=on_bad_file,
            seed=seed,
            complete=complete,
        )
        rows = {utt_id: _row(entry, root) for utt_id, entry in chosen.entries.items()}
        write_text(folder / manifest_name(subset), _manifest_text(rows))
        counts[subset] = chosen.counts
        listed |= chosen.left_out
        still_there |= {
            str(chosen.entries[utt_id]["wav"])
            for utt_id, row in rows.items()
            if row["wav"] in known
        }
    keep_bad_files(folder / "bad_files.tsv", listed, among=still_there)
    for subset, count in counts.items():
        if subsets.get(subset) is not None:
            _report(subset, subsets[subset], count, folder)
    return PreparedCorpus(**counts)


def read_headers(
    paths: Sequence[Path], *, on_bad_file: str
) -> tuple[dict[Path, tuple[int, int]], dict[str, str]]:
    """Read the headers of files that a corpus has to know before it can list its utterances.

    Parameters
    ----------
    paths : audio files.
    on_bad_file : "skip" or "raise".

    Returns
    -------
    Sample rate in Hz and number of samples by path, and reasons by path of the bad files.

    Raises
    ------
    BadAudioError : with "raise", for the first bad file.
    """
    check_policy(on_bad_file)
    return _read_all(paths, read_header, name=str, desc="headers", on_bad_file=on_bad_file)


def _known_files(folder: Path) -> set[str]:
    """Files, as they are written, of the manifests that an earlier start has left here."""
    earlier = read_data_files(folder)
    texts = [earlier.get(manifest_name(subset), "{}") for subset in SUBSETS]
    return {row["wav"] for text in texts for row in json.loads(text).values()}


def _choose(
    subset: str,
    utterances: Sequence[Utterance],
    *,
    read_text: Callable[[Path], str | None],
    durations_s: tuple[float, float],
    limit: int | None,
    on_bad_file: str,
    seed: int,
    complete: Callable[[str, dict[str, Any]], dict[str, Any]] | None,
) -> _Chosen:
    """Read, filter, draw and complete the utterances of one subset; as in `write_manifests`."""
    entries, bad = _read_entries(utterances, read_text, subset, on_bad_file)
    passed, too_short, too_long = _filter(entries, *durations_s)
    drawn = _draw(passed, limit, seed)
    not_drawn = len(passed) - len(drawn)
    if complete is not None:
        drawn, incomplete = _complete(drawn, complete, subset, on_bad_file)
        bad |= incomplete
    counts = SubsetCounts(
        utterances=len(drawn),
        hours=sum(entry["duration"] for entry in drawn.values()) / 3600,
        speakers=len({entry["speaker"] for entry in drawn.values()}),
        bad=len(bad),
        too_short=len(too_short),
        too_long=len(too_long),
        not_drawn=not_drawn,
    )
    return _Chosen(drawn, bad | too_short | too_long, counts)


def _report(
    subset: str, utterances: Sequence[Utterance], count: SubsetCounts, folder: Path
) -> None:
    """Log what became of a wanted subset; ValueError if nothing is left of it."""
    logger.info(
        "%s: %d utterances, %.4g hours, %d speakers; left out: %d bad, %d too short, "
        "%d too long, %d not drawn",
        subset,
        *count,
    )
    if not count.utterances:
        raise ValueError(_nothing_left(subset, utterances, count, folder))


def _read_all(
    items: Sequence[_Item],
    read: Callable[[_Item], _Result],
    *,
    name: Callable[[_Item], str],
    desc: str,
    on_bad_file: str,
) -> tuple[dict[_Item, _Result], dict[str, str]]:
    """Results by item, and the reasons of BadAudioErrors by ``name(item)``, from threads."""

    def attempt(item: _Item) -> _Result | BadAudioError:
        try:
            return read(item)
        except BadAudioError as error:
            return error

    results: dict[_Item, _Result] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        attempts = tqdm(
            pool.map(attempt, items), total=len(items), desc=desc, unit="file", disable=None
        )
        for item, result in zip(items, attempts, strict=True):
            if not isinstance(result, BadAudioError):
                results[item] = result
                continue
            if on_bad_file == "raise":
                pool.shutdown(cancel_futures=True)
                raise result
            failed[name(item)] = result.reason
    return results, failed


def _read_entries(
    utterances: Sequence[Utterance],
    read_text: Callable[[Path], str | None],
    subset: str,
    on_bad_file: str,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Entries by id (with real paths) and reasons by path; headers are read in threads."""
    header = functools.cache(read_header)  # a file may be the target or reference of many
    numbers = range(len(utterances))
    read, failed = _read_all(
        numbers,
        lambda number: _read_entry(utterances[number], read_text, header),
        name=lambda number: str(utterances[number].path),
        desc=f"{subset}: headers",
        on_bad_file=on_bad_file,
    )
    entries: dict[str, dict[str, Any]] = {}
    for number, entry in read.items():
        path, utt_id, *_ = utterances[number]
        if utt_id not in entries:
            entries[utt_id] = entry
            continue
        error = BadAudioError(path, f"id {utt_id} is taken by {entries[utt_id]['wav']}")
        if on_bad_file == "raise":
            raise error
        failed[error.path] = error.reason
    return entries, failed


def _read_entry(
    utterance: Utterance,
    read_text: Callable[[Path], str | None],
    header: Callable[[Path], tuple[int, int]],
) -> dict[str, Any]:
    path = utterance.path
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BadAudioError(path, "the file's name is not UTF-8; rename it") from None
    sample_rate, num_samples = header(path)
    for key, other in utterance.keys.items():
        if not isinstance(other, Path):
            continue
        try:
            found = header(other)
        except BadAudioError as error:
            raise BadAudioError(path, f"its {key} {error}") from error
        if key in ("target", "target_2") and "reference" not in utterance.keys:
            _check_as_long(path, (sample_rate, num_samples), key, other, found)
    text = read_text(path)
    return {
        "wav": path,
        "duration": num_samples / sample_rate,
        "num_samples": num_samples,
        "sample_rate": sample_rate,
        "speaker": utterance.speaker,
        **({} if text is None else {"text": text}),
        **utterance.keys,
    }


def _check_as_long(
    path: Path, header: tuple[int, int], key: str, target: Path, found: tuple[int, int]
) -> None:
    if header != found:
        raise BadAudioError(
            path,
            f"{header[1]} samples at {header[0]} Hz, but its {key} {target} has {found[1]} at "
            f"{found[0]} Hz; they must be the same recording",
        )


def _complete(
    entries: Mapping[str, dict[str, Any]],
    complete: Callable[[str, dict[str, Any]], dict[str, Any]],
    subset: str,
    on_bad_file: str,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    return _read_all(
        list(entries),
        lambda utt_id: complete(utt_id, entries[utt_id]),
        name=lambda utt_id: str(entries[utt_id]["wav"]),
        desc=f"{subset}: samples",
        on_bad_file=on_bad_file,
    )


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
            too_short[str(entry["wav"])] = f"too short: {duration:.3f} s < {min_duration_s} s"
        elif duration > max_duration_s:
            too_long[str(entry["wav"])] = f"too long: {duration:.3f} s > {max_duration_s} s"
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
    """Entry as it is written: paths in the data folder begin with ``{data_root}``."""

    # SpeechBrain runs str.format_map over every string of a manifest: braces must be doubled.
    def written(field: Any) -> Any:
        if isinstance(field, Path) and field.is_relative_to(root):
            return "{data_root}/" + _double_braces(field.relative_to(root).as_posix())
        return _double_braces(str(field)) if isinstance(field, str | Path) else field

    return {key: written(field) for key, field in entry.items()}


def _manifest_text(rows: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        f"{json.dumps(utt_id, ensure_ascii=False)}: {json.dumps(row, ensure_ascii=False)}"
        for utt_id, row in rows.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _double_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _nothing_left(
    subset: str, utterances: Sequence[Utterance], count: SubsetCounts, folder: Path
) -> str:
    return (
        f"no utterance left in subset '{subset}': of {len(utterances)} audio files "
        f"{count.bad} are bad, {count.too_short} shorter than min_duration_s, {count.too_long} "
        f"longer than max_duration_s, {count.not_drawn} not drawn; see {folder / 'bad_files.tsv'}"
    )
