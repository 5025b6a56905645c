"""Audio of the same utterances from all runs of a test set, with spectrograms to look at."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch

from recipes.common.files import file_crc
from recipes.common.plots import write_mels
from recipes.common.scoring import to_16k
from recipes.reporting.runs import Evaluation, labels

SAMPLE_RATE = 16_000
# Columns in front of the codecs' own, by the kind of file that the first run which has it gives.
COMMON = {"input": "Input", "reference": "Target speaker", "ref": "Reference"}


class Sample(NamedTuple):
    """One player: its files in the report, or why there is none."""

    audio: str | None
    image: str | None
    why: str = ""


class Item(NamedTuple):
    """One utterance: its samples in the order of the columns."""

    id: str
    samples: list[Sample]


class Samples(NamedTuple):
    """What is heard of one test set."""

    columns: list[str]
    items: list[Item]


class _Column(NamedTuple):
    """Where a column's audio comes from: one run, or None for what all have in common."""

    title: str
    run: Evaluation | None
    kind: str


_Files = dict[str, dict[str, Path]]  # by utterance, then by kind


def shared_items(samples: Iterable[_Files]) -> list[str]:
    """Ids of utterances that every run with samples has, from one and the same reference.

    Parameters
    ----------
    samples : of each run, see `Evaluation.samples`.
    """
    found = [files for files in samples if files]
    if not found:
        return []
    return [
        item
        for item in found[0]
        if all("hyp" in files.get(item, {}) for files in found)
        and len({_reference(files[item]) for files in found}) == 1
    ]


def write_samples(
    runs: Sequence[Evaluation], output: Path, folder: str, *, limit: int
) -> Samples | None:
    """Copy audio and draw spectrograms for one test set.

    Utterances that all runs share come first; of others, cells without audio say why.

    Parameters
    ----------
    runs : of one task on one test set.
    output : the report's folder.
    folder : path in it to write to.
    limit : at most so many utterances.

    Returns
    -------
    None if no run has samples.
    """
    samples = {run.folder: run.samples() for run in runs}
    all_items = [item for files in samples.values() for item in files]
    ids = list(dict.fromkeys([*shared_items(samples.values()), *all_items]))[:limit]
    if not ids:
        return None
    columns = _columns(runs, samples, ids)
    (output / folder).mkdir(parents=True)
    items = []
    for number, item in enumerate(ids, 1):
        first = next(files[item] for files in samples.values() if item in files)
        sources = [
            first.get(column.kind, "not among the samples")
            if column.run is None
            else _source(samples[column.run.folder], item, column.kind, _reference(first))
            for column in columns
        ]
        items.append(Item(item, _write_item(sources, output, f"{folder}/{number:02d}")))
    return Samples([column.title for column in columns], items)


def _columns(
    runs: Sequence[Evaluation], samples: Mapping[Path, _Files], ids: Sequence[str]
) -> list[_Column]:
    names = labels(runs)
    heard = [files.get(item, {}) for files in samples.values() for item in ids]
    kinds = [kind for kind in COMMON if any(kind in files for files in heard)]
    columns = [_Column(COMMON[kind], None, kind) for kind in kinds]
    for run in runs:
        name = names[run.folder]
        columns.append(_Column(name, run, "hyp"))
        if any("rec" in files for files in samples[run.folder].values()):
            columns.append(_Column(f"{name}, unquantized features", run, "rec"))
    return columns


def _source(samples: _Files, item: str, kind: str, reference: int | None) -> Path | str:
    """File of one run, or why there is none; ``reference`` as of `_reference` in other runs."""
    if not samples:
        return "this run wrote no samples"
    if item in samples and _reference(samples[item]) != reference:
        return "this run has another reference under the same name"
    return samples.get(item, {}).get(kind, "not among this run's samples")


def _write_item(sources: Sequence[Path | str], output: Path, stem: str) -> list[Sample]:
    samples: list[Sample] = []
    signals = {}
    for place, source in enumerate(sources):
        if isinstance(source, str):
            samples.append(Sample(None, None, why=source))
            continue
        try:
            sig = load(source)
        except ValueError as error:
            samples.append(Sample(None, None, why=str(error)))
            continue
        audio, image = f"{stem}-{place}.wav", f"{stem}-{place}.png"
        shutil.copyfile(source, output / audio)
        signals[output / image] = sig
        samples.append(Sample(audio, image))
    write_mels(signals, sample_rate=SAMPLE_RATE)
    return samples


def load(path: Path) -> torch.Tensor:
    """Signal (T,) of a sample at 16 kHz.

    Raises
    ------
    ValueError : if it is no audio file, empty or not mono; names the file.
    """
    try:
        sig, sample_rate = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if sig.ndim != 1 or not sig.size:
        raise ValueError(f"{path}: a sample must be mono and not empty, got shape {sig.shape}")
    return to_16k(torch.from_numpy(sig), sample_rate=sample_rate)


def _reference(files: Mapping[str, Path]) -> int | None:
    """CRC of an utterance's reference: runs may be compared where it is the same."""
    return file_crc(files["ref"]) if "ref" in files else None
