"""IEMOCAP: dialogues of ten actors in five sessions, each turn with the emotion heard in it.

Source: sail.usc.edu/iemocap (Busso et al., 2008), licensed, unpacked as ``IEMOCAP_full_release``,
16 kHz. Of each session are read

- ``SessionN/sentences/wav/<dialogue>/<utterance>.wav``
- ``SessionN/dialog/EmoEvaluation/<dialogue>.txt``: one line for each turn with its times, name,
  emotion and the mean valence, activation and dominance; then each judge's word
- ``SessionN/dialog/transcriptions/<dialogue>.txt``: ``<utterance> [start-end]: text``

In a session one woman and one man speak. The last part of an utterance's name says who does:
``Ses05F_impro01_M000`` is the man's, in a dialogue where the woman wears the markers.
"""

import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.corpus_files import Utterance, corpus_folder
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests

logger = logging.getLogger(__name__)

SESSIONS = (1, 2, 3, 4, 5)
EMOTIONS = {"ang": "anger", "hap": "happiness", "neu": "neutral", "sad": "sadness"}
OTHER_LABELS = ("exc", "fru", "sur", "fea", "dis", "oth", "xxx")  # xxx: the judges disagree

_SUMMARY = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>\S+)\t(?P<label>\w+)\t\[")
_TEXT = re.compile(r"(?P<utterance>\S+) \[[\d.]+-[\d.]+\]: *(?P<text>.*\S)")
_NAME = re.compile(r"(?P<session>Ses\d\d)[FM]_\w+_(?P<sex>[FM])\w*")


class Turn(NamedTuple):
    """One turn of a dialogue and what the judges agree on."""

    utterance: str
    speaker: str
    label: str


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    heldout_session: int = 5,
    merge_excited: bool = False,
    **filters: Any,
) -> PreparedCorpus:
    """Write manifests with the key ``emotion``: anger, happiness, neutral or sadness.

    The held-out session's woman is the validation set, its man the test set, the other sessions are
    trained on. Turns with other emotions, or none that the judges agree on, are left out; the log
    says how many.

    Parameters
    ----------
    data_folder : folder that holds ``Session1`` to ``Session5``.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    heldout_session : 1 to 5.
    merge_excited : whether what is heard as excited counts as happiness.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, on_bad_file, seed, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; turns without a wav file are bad.

    Raises
    ------
    FileNotFoundError : if a session, or a folder or all evaluations of it, are missing.
    ValueError : if an evaluation is none, or nothing is left of a subset; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    if heldout_session not in SESSIONS:
        raise ValueError(f"heldout_session must be one of 1 to 5, got {heldout_session!r}")
    emotions = EMOTIONS | ({"exc": "happiness"} if merge_excited else {})
    subsets: dict[str, list[Utterance]] = {"train": [], "valid": [], "test": []}
    left_out: Counter[str] = Counter()
    for session in SESSIONS:
        for path, turn in _list_session(root, session):
            if turn.label not in emotions:
                left_out[turn.label] += 1
                continue
            heldout = "valid" if turn.speaker.endswith("F") else "test"
            subsets["train" if session != heldout_session else heldout].append(
                Utterance(path, turn.utterance, turn.speaker, {"emotion": emotions[turn.label]})
            )
    counts = ", ".join(f"{number} {label}" for label, number in sorted(left_out.items()))
    logger.info("turns with another emotion or none agreed on are left out: %s", counts or "none")
    return write_manifests(root, save_folder, subsets=subsets, read_text=_text_reader(), **filters)


def read_evaluation(path: Path) -> list[Turn]:
    """Read the turns of a dialogue from its file of ``EmoEvaluation``.

    Raises
    ------
    ValueError : if it has no line of a turn, or one with a name or an emotion that IEMOCAP has not.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    turns = []
    for number, line in enumerate(lines, 1):
        if found := _SUMMARY.match(line):
            name, label = _NAME.fullmatch(found["utterance"]), found["label"]
            if name is None or label not in (*EMOTIONS, *OTHER_LABELS):
                raise ValueError(
                    f"{path}, line {number}: a turn such as Ses01F_impro01_F000 and one of "
                    f"{', '.join((*EMOTIONS, *OTHER_LABELS))} are needed, got {line!r}"
                )
            turns.append(Turn(found["utterance"], name["session"] + name["sex"], label))
    if not turns:
        raise ValueError(
            f"{path} has no line '[start - end] <utterance> <emotion> [v, a, d]', parted by tabs; "
            "unpack IEMOCAP_full_release again"
        )
    return turns


def _list_session(root: Path, session: int) -> Iterator[tuple[Path, Turn]]:
    fix = "name the folder that holds Session1 to Session5 as data_folder"
    folder = corpus_folder(root, f"Session{session}", corpus="IEMOCAP", fix=fix)
    evaluations, wavs = (
        corpus_folder(folder, name, corpus="IEMOCAP", fix="unpack IEMOCAP_full_release again")
        for name in ("dialog/EmoEvaluation", "sentences/wav")
    )
    files = sorted(evaluations.glob("[!.]*.txt"))
    if not files:
        raise FileNotFoundError(
            f"no <dialogue>.txt in {evaluations}; unpack IEMOCAP_full_release again"
        )
    for file in files:
        for turn in read_evaluation(file):
            yield wavs / file.stem / f"{turn.utterance}.wav", turn


def _text_reader() -> Callable[[Path], str | None]:
    """Reader of an utterance's text; a dialogue's file is read once."""

    @functools.cache
    def dialogue(path: Path) -> dict[str, str]:
        if not path.is_file():
            return {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = (_TEXT.fullmatch(line.strip()) for line in lines)
        return {match["utterance"]: match["text"] for match in found if match}

    def read(path: Path) -> str | None:
        folder, session = path.parent, path.parents[3]
        texts = dialogue(session / "dialog" / "transcriptions" / f"{folder.name}.txt")
        return texts.get(path.stem)

    return read
