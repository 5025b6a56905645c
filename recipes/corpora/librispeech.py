"""LibriSpeech: ``<split>/<speaker>/<chapter>/<utterance>.flac``, one transcript file a chapter.

Source: openslr.org/12 (Panayotov et al., 2015), 16 kHz, read where it lies and never changed. Each
line of ``<speaker>-<chapter>.trans.txt`` is an utterance id and its text in capitals. A text file
beside an utterance, as in LibriTTS, is taken first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import list_splits, tree_text_reader
from recipes.common.manifests import PreparedCorpus, write_manifests


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
        suffixes=(".flac", ".wav"),
    )
    return write_manifests(
        data_folder, save_folder, subsets=subsets, read_text=tree_text_reader(), **filters
    )
