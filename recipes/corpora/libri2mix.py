"""Libri2Mix: two speakers at once, beside each of them alone, for separation.

Source: folders that the scripts of github.com/JorisCos/LibriMix (Cosentino et al., 2020,
arXiv:2005.11262) have written: ``train-100``, ``dev`` and ``test``, in each the mixtures
``mix_clean/<id>.wav`` and the speakers ``s1/<id>.wav`` and ``s2/<id>.wav``, already scaled. In the
mode ``min`` all are as long as the shorter utterance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import Utterance, check_splits, corpus_folder
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests
from recipes.corpora.librimix import list_mixtures


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    train_splits: Sequence[str],
    valid_splits: Sequence[str],
    test_splits: Sequence[str],
    mixtures_folder: str | Path = "Libri2Mix/wav16k/min",
    mixture: str = "mix_clean",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of mixtures: ``wav`` is both speakers, ``target`` and ``target_2`` each.

    Parameters
    ----------
    data_folder : folder that holds ``Libri2Mix``.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    train_splits, valid_splits, test_splits : folders such as ``train-100``; an empty list = not
        wanted.
    mixtures_folder : that holds them, below ``data_folder`` or absolute.
    mixture : folder of the mixtures in a split; ``mix_both`` has noise in it, too.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, seed, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; speakers are the first ones. Mixtures without
        a file of either speaker that is as long are bad.

    Raises
    ------
    FileNotFoundError : if a folder is missing.
    ValueError : if splits are no list, or nothing is left of a subset; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    mixtures = corpus_folder(
        root, mixtures_folder, corpus="LibriMix", fix="name another one as mixtures_folder"
    )
    splits = {"train": train_splits, "valid": valid_splits, "test": test_splits}
    check_splits({f"{subset}_splits": names for subset, names in splits.items()})
    subsets = {
        subset: [
            utterance
            for name in names
            for utterance in _list_split(mixtures, name, mixture=mixture, subset=subset)
        ]
        if names
        else None
        for subset, names in splits.items()
    }
    return write_manifests(
        root, save_folder, subsets=subsets, read_text=lambda path: None, **filters
    )


def _list_split(mixtures: Path, name: str, *, mixture: str, subset: str) -> list[Utterance]:
    fix = f"remove {name} from {subset}_splits"
    return list_mixtures(
        corpus_folder(mixtures, name, corpus="LibriMix", fix=fix),
        mixture=mixture,
        sources={"target": "s1", "target_2": "s2"},
        fix=fix,
    )
