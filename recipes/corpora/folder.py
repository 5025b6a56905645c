"""Any tree of audio files: a user's own recordings.

Split by named folders (``train_splits`` and so on), or by drawing speakers or utterances, or not at
all: a test set.
Whatever libsndfile reads is taken, at any rate and with any number of channels; the files are never
changed.
"""

import functools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import (
    AUDIO_SUFFIXES,
    SUBSETS,
    Utterance,
    describe_tree,
    find_audio,
    list_splits,
    tree_text_reader,
)
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests
from recipes.corpora.shares import subset_sizes


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    train_splits: Sequence[str] | None = None,
    valid_splits: Sequence[str] | None = None,
    test_splits: Sequence[str] | None = None,
    all_in: str | None = None,
    split_by: str = "speaker",
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    speaker_level: int = 1,
    language: str | None = None,
    languages: Mapping[str, str] | None = None,
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of a tree of audio files.

    An utterance's id is its path below ``data_folder`` without suffix, folders joined by ``--``.
    Its text is ``<file>.normalized.txt`` or ``<file>.txt`` beside it, or its line in a
    ``*.trans.txt`` of its folder, where there is one.

    Parameters
    ----------
    data_folder : root of the tree.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    train_splits, valid_splits, test_splits : folders below ``data_folder``; when any is given, the
        split is by these names and nothing is drawn.
    all_in : "train", "valid" or "test": the subset that gets every file; nothing is drawn.
    split_by : "speaker" (no speaker in two subsets) or "utterance".
    valid_fraction, test_fraction : share of the speakers or utterances, in [0, 1); at least one
        unless 0. Drawn before any filter, so that a changed filter moves nobody to another subset.
    speaker_level : how many folders above the file the speaker's folder is (1 = the file's own).
    language : ISO 639-1 code of what is spoken; without it and ``languages``, English.
    languages : code by how the path below ``data_folder`` begins, such as ``{german: de}`` for
        ``german-9494/...``; the longest beginning counts.
    seed : of the draws.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder or a named folder is missing.
    ValueError : if an argument is out of range, a path begins with none of ``languages``, there are
        too few speakers or utterances to split, or nothing is left of a subset; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    describe = functools.partial(describe_tree, root=root, speaker_level=speaker_level)
    splits = (train_splits, valid_splits, test_splits)
    if all_in is not None:
        subsets = _all_in(all_in, find_audio(root), describe=describe, splits=splits)
    elif any(splits):
        subsets = list_splits(
            root, corpus="folder", splits=splits, suffixes=AUDIO_SUFFIXES, describe=describe
        )
    else:
        utterances = [Utterance(path, *describe(path)) for path in find_audio(root)]
        subsets = _draw_subsets(
            utterances,
            split_by=split_by,
            fractions={"valid_fraction": valid_fraction, "test_fraction": test_fraction},
            seed=seed,
        )
    if language is not None or languages is not None:
        by_beginning = {"": language} if languages is None else languages
        subsets = {
            subset: utterances
            and [
                u._replace(keys={"language": _language(u, by_beginning, root)}) for u in utterances
            ]
            for subset, utterances in subsets.items()
        }
    return write_manifests(
        root, save_folder, subsets=subsets, read_text=tree_text_reader(), seed=seed, **filters
    )


def _all_in(
    subset: str,
    paths: Sequence[Path],
    *,
    describe: Callable[[Path], tuple[str, str]],
    splits: Sequence[Sequence[str] | None],
) -> dict[str, list[Utterance] | None]:
    if subset not in SUBSETS:
        raise ValueError(f"all_in must be one of {', '.join(SUBSETS)}, got {subset!r}")
    if any(splits):
        raise ValueError(f"all_in: {subset} takes every file; remove it or the named splits")
    return {subset: [Utterance(path, *describe(path)) for path in paths]}


def _language(utterance: Utterance, by_beginning: Mapping[str, str], root: Path) -> str:
    path = utterance.path.relative_to(root).as_posix()
    beginnings = [beginning for beginning in by_beginning if path.startswith(beginning)]
    if not beginnings:
        raise ValueError(
            f"no language is known for {path}; add the beginning of its path to languages "
            f"({', '.join(by_beginning)})"
        )
    return by_beginning[max(beginnings, key=len)]


def _draw_subsets(
    utterances: Sequence[Utterance], *, split_by: str, fractions: dict[str, float], seed: int
) -> dict[str, list[Utterance] | None]:
    """Deal whole groups (a speaker's utterances, or single ones) to the three subsets."""
    if split_by not in ("speaker", "utterance"):
        raise ValueError(f"split_by must be speaker or utterance, got {split_by!r}")
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.speaker if split_by == "speaker" else str(utterance.path)].append(
            utterance
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    sizes = subset_sizes(len(names), **fractions)
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
