"""Any tree of audio files: a user's own recordings.

Split either by named folders (``train_splits`` and so on), or by drawing speakers or utterances.
Whatever libsndfile reads is taken, at any rate and with any number of channels; the files are never
changed.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.files import existing_folder
from recipes.common.manifests import (
    AUDIO_SUFFIXES,
    PreparedCorpus,
    Utterance,
    find_audio,
    list_splits,
    read_text_beside,
    write_manifests,
)


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    train_splits: Sequence[str] | None = None,
    valid_splits: Sequence[str] | None = None,
    test_splits: Sequence[str] | None = None,
    split_by: str = "speaker",
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    speaker_level: int = 1,
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of a tree of audio files.

    An utterance's id is its path below ``data_folder`` without suffix, folders joined by ``--``.
    Its text is ``<file>.normalized.txt`` or ``<file>.txt`` beside it, where there is one.

    Parameters
    ----------
    data_folder : root of the tree.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    train_splits, valid_splits, test_splits : folders below ``data_folder``; when any is given, the
        split is by these names and nothing is drawn.
    split_by : "speaker" (no speaker in two subsets) or "utterance".
    valid_fraction, test_fraction : share of the speakers or utterances, in [0, 1); at least one
        unless 0. Drawn before any filter, so that a changed filter moves nobody to another subset.
    speaker_level : how many folders above the file the speaker's folder is (1 = the file's own).
    seed : of the draws.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder or a named folder is missing.
    ValueError : if an argument is out of range, there are too few speakers or utterances to split,
        or nothing is left of a subset; BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    if speaker_level < 1:
        raise ValueError(f"speaker_level must be at least 1, got {speaker_level}")

    def describe(path: Path) -> tuple[str, str]:
        folders = (root.name, *path.parts[:-1])
        return "--".join(path.with_suffix("").parts), folders[max(0, len(folders) - speaker_level)]

    splits = (train_splits, valid_splits, test_splits)
    if any(splits):
        subsets = list_splits(
            root, corpus="folder", splits=splits, suffixes=AUDIO_SUFFIXES, describe=describe
        )
    else:
        utterances = [
            Utterance(path, *describe(path.relative_to(root))) for path in find_audio(root)
        ]
        subsets = _draw_subsets(
            utterances,
            split_by=split_by,
            fractions={"valid": valid_fraction, "test": test_fraction},
            seed=seed,
        )
    return write_manifests(
        root, save_folder, subsets=subsets, read_text=_read_text, seed=seed, **filters
    )


def _draw_subsets(
    utterances: Sequence[Utterance], *, split_by: str, fractions: dict[str, float], seed: int
) -> dict[str, list[Utterance] | None]:
    """Deal whole groups (a speaker's utterances, or single ones) to the three subsets."""
    if split_by not in ("speaker", "utterance"):
        raise ValueError(f"split_by must be speaker or utterance, got {split_by!r}")
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        raise ValueError(f"valid_fraction and test_fraction must leave some to train: {fractions}")
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.speaker if split_by == "speaker" else str(utterance.path)].append(
            utterance
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    sizes = {k: max(1, round(share * len(names))) if share else 0 for k, share in fractions.items()}
    if sum(sizes.values()) >= len(names):
        hint = "; split_by: utterance needs fewer" if split_by == "speaker" else ""
        raise ValueError(
            f"{len(names)} {split_by}(s) in {len(utterances)} audio files are too few for a "
            f"training set beside {sizes['valid']} for valid and {sizes['test']} for test{hint}"
        )
    subsets: dict[str, list[Utterance] | None] = {}
    for subset, size in sizes.items():
        chosen, names = names[:size], names[size:]
        subsets[subset] = [u for name in sorted(chosen) for u in groups[name]] or None
    return {"train": [u for name in sorted(names) for u in groups[name]], **subsets}


def _read_text(path: Path) -> str | None:
    return read_text_beside(path) or read_text_beside(path, suffix=".txt")
