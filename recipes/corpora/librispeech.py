"""LibriSpeech: ``<split>/<speaker>/<chapter>/<utterance>.flac``, one transcript file a chapter.

Source: openslr.org/12 (Panayotov et al., 2015), 16 kHz, read where it lies and never changed. Each
line of ``<speaker>-<chapter>.trans.txt`` is an utterance id and its text in capitals. A text file
beside an utterance, as in LibriTTS, is taken first.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import SUBSETS, Utterance, list_splits, tree_text_reader
from recipes.common.manifests import PreparedCorpus, write_manifests
from recipes.corpora.shares import subset_sizes

_SUFFIXES = (".flac", ".wav")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    train_splits: Sequence[str],
    valid_splits: Sequence[str],
    test_splits: Sequence[str],
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of LibriSpeech.

    Parameters
    ----------
    data_folder : folder that holds ``train-clean-100``, ``dev-clean`` and so on.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    train_splits, valid_splits, test_splits : any of the splits; an empty list = not wanted.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, seed, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder or a split is missing.
    ValueError : if nothing is left of a subset; BadAudioError with ``on_bad_file="raise"``.
    """
    subsets = list_splits(
        data_folder,
        corpus="LibriSpeech",
        splits=(train_splits, valid_splits, test_splits),
        suffixes=_SUFFIXES,
    )
    return write_manifests(
        data_folder, save_folder, subsets=subsets, read_text=tree_text_reader(), **filters
    )


def prepare_by_speaker(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    splits: Sequence[str],
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write manifests in which the same speakers are in train, valid and test.

    For speaker identification. Each speaker's utterances are shuffled by the seed and the speaker's
    name, before any filter, so that neither a filter nor another speaker moves one to another
    subset. A speaker with too few for all three, fewer than 3 by default, is in train alone.

    Parameters
    ----------
    data_folder, save_folder : as in `prepare`.
    splits : whose utterances are divided, such as ``[train-clean-100, train-clean-360]``.
    valid_fraction, test_fraction : share of each speaker's utterances, in [0, 1); at least one
        unless 0.
    seed : of the division and of draws.
    filters : as in `prepare`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder or a split is missing.
    ValueError : if an argument is out of range or nothing is left of a subset; BadAudioError with
        ``on_bad_file="raise"``.
    """
    if not splits:
        raise ValueError("splits names no split of LibriSpeech; write such as [train-clean-100]")
    listed = list_splits(
        data_folder,
        corpus="LibriSpeech",
        splits=(splits, None, None),
        suffixes=_SUFFIXES,
        arguments=("splits", "", ""),
    )
    subsets = _divide_by_speaker(
        listed["train"] or [],
        fractions={"valid_fraction": valid_fraction, "test_fraction": test_fraction},
        seed=seed,
    )
    return write_manifests(
        data_folder,
        save_folder,
        subsets=subsets,
        read_text=tree_text_reader(),
        seed=seed,
        **filters,
    )


def _divide_by_speaker(
    utterances: Sequence[Utterance], *, fractions: dict[str, float], seed: int
) -> dict[str, list[Utterance] | None]:
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    subsets: dict[str, list[Utterance]] = {subset: [] for subset in SUBSETS}
    for speaker, own in by_speaker.items():
        sizes = subset_sizes(len(own), **fractions)
        own.sort(key=lambda utterance: utterance.id)
        random.Random(f"{seed} {speaker}").shuffle(own)
        if sum(sizes.values()) < len(own):
            for subset, size in sizes.items():
                subsets[subset] += own[:size]
                own = own[size:]
        subsets["train"] += own
    return {subset: chosen or None for subset, chosen in subsets.items()}
