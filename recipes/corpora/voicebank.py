"""VoiceBank-DEMAND: noisy speech beside the clean recordings.

Source: datashare.ed.ac.uk/handle/10283/2791 (Valentini-Botinhao et al., 2016), 48 kHz. Test set:
p232 and p257, 824 utterances (the FocalCodec paper's appendix says 872), ratios of 2.5, 7.5, 12.5
and 17.5 dB, ``noisy_testset_wav/<speaker>_<number>.wav``, the same in ``clean_testset_wav``, and
texts in ``testset_txt/<speaker>_<number>.txt``. Training set: 28 speakers, 11572 utterances, other
noises at 0, 5, 10 and 15 dB, in ``noisy_trainset_28spk_wav`` and so on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.corpus_files import Utterance, corpus_folder, find_audio, read_text
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests


class Folders(NamedTuple):
    """Where one set lies, below the root or absolute, and the arguments that say so."""

    noisy: str | Path
    clean: str | Path
    text: str | Path
    arguments: tuple[str, str] = ("noisy_folder", "clean_folder")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    noisy_folder: str | Path = "noisy_testset_wav",
    clean_folder: str | Path = "clean_testset_wav",
    text_folder: str | Path = "testset_txt",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of the test set: ``wav`` is noisy, ``target`` clean.

    Parameters
    ----------
    data_folder : folder that holds the unpacked archives.
    save_folder : receives {train,valid,test}.json and bad_files.tsv; train and valid are empty.
    noisy_folder, clean_folder, text_folder : below ``data_folder``, or absolute paths. A folder of
        texts that is not there is no error: the utterances then have none.
    filters : min_duration_s, max_duration_s, max_test_utterances, on_bad_file, seed, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; utterances without a clean recording of the
        same length are bad.

    Raises
    ------
    FileNotFoundError : if a folder of audio is missing.
    ValueError : if nothing is left; BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    folders = Folders(noisy_folder, clean_folder, text_folder)
    return _write(root, save_folder, {"test": _list_set(root, folders)}, **filters)


def prepare_training(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    valid_speakers: Sequence[str] = ("p226", "p287"),
    noisy_train_folder: str | Path = "noisy_trainset_28spk_wav",
    clean_train_folder: str | Path = "clean_trainset_28spk_wav",
    train_text_folder: str | Path = "trainset_28spk_txt",
    noisy_folder: str | Path = "noisy_testset_wav",
    clean_folder: str | Path = "clean_testset_wav",
    text_folder: str | Path = "testset_txt",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of an enhancement's training; rows and the test set as in `prepare`.

    Parameters
    ----------
    data_folder : folder that holds the unpacked archives of both sets.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    valid_speakers : of the training set, who are the validation set instead. The paper draws two
        and does not name them.
    noisy_train_folder, clean_train_folder, train_text_folder : of the training set; as the
        following ones.
    noisy_folder, clean_folder, text_folder : of the test set, as in `prepare`.
    filters : as in `prepare`, and max_train_utterances and max_valid_utterances.

    Returns
    -------
    PreparedCorpus : as `prepare`.

    Raises
    ------
    FileNotFoundError : if a folder of audio is missing.
    ValueError : if a validation speaker is not in the training set, or nothing is left of a subset;
        BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    arguments = ("noisy_train_folder", "clean_train_folder")
    training = _list_set(
        root, Folders(noisy_train_folder, clean_train_folder, train_text_folder, arguments)
    )
    _check_speakers(valid_speakers, training)
    subsets = {
        "train": [(u, text) for u, text in training if u.speaker not in valid_speakers],
        "valid": [(u, text) for u, text in training if u.speaker in valid_speakers],
        "test": _list_set(root, Folders(noisy_folder, clean_folder, text_folder)),
    }
    return _write(root, save_folder, subsets, **filters)


def _list_set(root: Path, folders: Folders) -> list[tuple[Utterance, Path]]:
    """Utterances of one set, and where the text of each would be."""
    noisy, clean = (
        corpus_folder(root, name, corpus="VoiceBank", fix=f"name another one as {argument}")
        for name, argument in zip(folders[:2], folders.arguments, strict=True)
    )
    texts = root / Path(folders.text).expanduser()
    return [
        (
            Utterance(
                path,
                path.stem,
                path.stem.split("_")[0],
                {"target": clean / path.relative_to(noisy)},
            ),
            texts / f"{path.stem}.txt",
        )
        for path in find_audio(noisy, suffixes=(".wav", ".flac"))
    ]


def _check_speakers(names: Sequence[str], training: Sequence[tuple[Utterance, Path]]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"valid_speakers must be a list such as [p226, p287], got {names!r}")
    speakers = {utterance.speaker for utterance, _ in training}
    if missing := sorted(set(names) - speakers):
        raise ValueError(
            f"valid_speakers {', '.join(missing)} are not in the training set; its speakers are "
            f"{', '.join(sorted(speakers))}"
        )


def _write(
    root: Path,
    save_folder: str | Path,
    subsets: dict[str, list[tuple[Utterance, Path]]],
    **filters: Any,
) -> PreparedCorpus:
    texts = {utterance.path: text for listed in subsets.values() for utterance, text in listed}
    return write_manifests(
        root,
        save_folder,
        subsets={subset: [u for u, _ in listed] for subset, listed in subsets.items()},
        read_text=lambda path: read_text(texts[path]),
        **filters,
    )
