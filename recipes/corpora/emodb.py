"""EmoDB, the Berlin database of emotional speech: ten actors say ten sentences in seven emotions.

Source: emodb.bilderbar.info (Burkhardt et al., 2005), German, 16 kHz. A file's name says all:
``03a01Fa.wav`` is speaker 03, sentence a01, emotion F (``Freude``, happiness), version a.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.corpus_files import Utterance, find_audio
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests

logger = logging.getLogger(__name__)

SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
EMOTIONS = {  # by the letter of their German names
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}

_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[A-Z])(?P<version>[a-z])")


class Recording(NamedTuple):
    """What a file's name says."""

    speaker: str
    sentence: str
    emotion: str


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    emotions: Sequence[str] = ("anger", "happiness", "neutral", "sadness"),
    valid_speakers: Sequence[str] = ("08", "10"),
    test_speakers: Sequence[str] = ("11", "14"),
    **filters: Any,
) -> PreparedCorpus:
    """Write manifests with the key ``emotion``; no speaker is in two of them.

    Parameters
    ----------
    data_folder : folder of the files, at any depth.
    save_folder : receives {train,valid,test}.json and bad_files.tsv; in that also the audio files
        whose names are none of EmoDB's.
    emotions : to be told apart, some of the values of `EMOTIONS`; the log says how many recordings
        of others are left out.
    valid_speakers, test_speakers : some of `SPEAKERS`; the others are trained on. By default a
        woman and a man each.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, seed, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder is missing.
    ValueError : if an emotion or a speaker is not known, a speaker is in two sets, or nothing is
        left of a subset; BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    _check_names(emotions, known=tuple(EMOTIONS.values()), argument="emotions")
    _check_names(valid_speakers, known=SPEAKERS, argument="valid_speakers")
    _check_names(test_speakers, known=SPEAKERS, argument="test_speakers")
    if both := sorted(set(valid_speakers) & set(test_speakers)):
        raise ValueError(f"speakers {', '.join(both)} are in valid_speakers and test_speakers")
    subset_of = dict.fromkeys(valid_speakers, "valid") | dict.fromkeys(test_speakers, "test")
    subsets: dict[str, list[Utterance]] = {"train": [], "valid": [], "test": []}
    unknown: dict[str, str] = {}
    others: Counter[str] = Counter()
    for path in find_audio(root):
        recording = read_name(path.stem)
        if recording is None:
            unknown[str(path)] = "its name is none of EmoDB's, such as 03a01Fa"
        elif recording.emotion not in emotions:
            others[recording.emotion] += 1
        else:
            keys = {"language": "de", "emotion": recording.emotion}
            subsets[subset_of.get(recording.speaker, "train")].append(
                Utterance(path, path.stem, recording.speaker, keys)
            )
    counts = ", ".join(f"{number} {emotion}" for emotion, number in sorted(others.items()))
    logger.info("recordings of other emotions are left out: %s", counts or "none")
    return write_manifests(
        root, save_folder, subsets=subsets, read_text=lambda path: None, left_out=unknown, **filters
    )


def read_name(stem: str) -> Recording | None:
    """Read a file's name without suffix; None if it is none of EmoDB's."""
    found = _NAME.fullmatch(stem)
    if found is None or found["emotion"] not in EMOTIONS:
        return None
    return Recording(found["speaker"], found["sentence"], EMOTIONS[found["emotion"]])


def _check_names(names: Sequence[str], *, known: Sequence[str], argument: str) -> None:
    if isinstance(names, str) or not names or not set(names) <= set(known):
        raise ValueError(
            f"{argument} must be a list of some of {', '.join(known)}, got {names!r}; "
            "numbers need quotes, such as ['08']"
        )
