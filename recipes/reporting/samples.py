"""Audio of the same utterances from all runs of a test set, with spectrograms to look at."""

import shutil
from collections.abc import Sequence
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
    seconds: float = 0
    why: str = ""


class Item(NamedTuple):
    """One utterance: its samples in the order of the columns."""

    id: str
    samples: list[Sample]


class Samples(NamedTuple):
    """What is heard of one test set."""

    columns: list[str]
    items: list[Item]


def shared_items(runs: Sequence[Evaluation]) -> list[str]:
    """Ids of utterances that every run with samples has, from one and the same reference."""
    found = [samples for run in runs if (samples := run.samples())]
    if not found:
        return []
    return [
        item
        for item in found[0]
        if all("hyp" in samples.get(item, {}) for samples in found)
        and len({_crc(samples[item].get("ref")) for samples in found}) == 1
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
    by_run = {run.folder: run.samples() for run in runs}
    shared = shared_items(runs)
    others = [item for samples in by_run.values() for item in samples if item not in shared]
    ids = [*shared, *dict.fromkeys(others)][:limit]
    if not ids:
        return None
    names = labels(runs)
    heard = [samples.get(item, {}) for samples in by_run.values() for item in ids]
    kinds = [kind for kind in COMMON if any(kind in files for files in heard)]
    columns = [COMMON[kind] for kind in kinds]
    with_rec = [run for run in runs if any("rec" in files for files in by_run[run.folder].values())]
    for run in runs:
        columns.append(names[run.folder])
        if run in with_rec:
            columns.append(f"{names[run.folder]}, unquantized features")
    (output / folder).mkdir(parents=True)
    items = []
    for number, item in enumerate(ids, 1):
        sources = _sources(item, runs, by_run, kinds, with_rec)
        items.append(Item(item, _write_item(sources, output, f"{folder}/{number:02d}")))
    return Samples(columns, items)


def _sources(item, runs, by_run, kinds, with_rec) -> list[Path | str]:
    """For each column the file, or why there is none."""
    first = next(by_run[run.folder][item] for run in runs if item in by_run[run.folder])
    crc = _crc(first.get("ref"))
    sources: list[Path | str] = [first.get(kind, "not among the samples") for kind in kinds]
    for run in runs:
        samples = by_run[run.folder]
        if not samples:
            why = "this run wrote no samples"
        elif item not in samples:
            why = "not among this run's samples"
        elif _crc(samples[item].get("ref")) != crc:
            why = "this run has another reference under the same name"
        else:
            why = ""
        for kind in ("hyp", "rec") if run in with_rec else ("hyp",):
            sources.append(why or samples[item].get(kind, "not among this run's samples"))
    return sources


def _write_item(sources: Sequence[Path | str], output: Path, stem: str) -> list[Sample]:
    samples: list[Sample] = []
    signals = {}
    for place, source in enumerate(sources):
        if isinstance(source, str):
            samples.append(Sample(None, None, why=source))
            continue
        try:
            sig = load(source)
        except (soundfile.SoundFileError, ValueError) as error:
            samples.append(Sample(None, None, why=f"cannot be read: {error}"))
            continue
        audio, image = f"{stem}-{place}.wav", f"{stem}-{place}.png"
        shutil.copyfile(source, output / audio)
        signals[output / image] = sig
        samples.append(Sample(audio, image, len(sig) / SAMPLE_RATE))
    write_mels(signals, sample_rate=SAMPLE_RATE)
    return samples


def load(path: Path) -> torch.Tensor:
    """Signal (T,) of a sample at 16 kHz.

    Raises
    ------
    ValueError : if it is empty or not mono.
    soundfile.SoundFileError : if it is no audio file.
    """
    sig, sample_rate = soundfile.read(path, dtype="float32")
    if sig.ndim != 1 or not sig.size:
        raise ValueError(f"a sample must be mono and not empty, got shape {sig.shape}")
    return to_16k(torch.from_numpy(sig), sample_rate=sample_rate)


def _crc(path: Path | None) -> int | None:
    return None if path is None else file_crc(path)
