"""The files of a corpus as they lie on the disk: folders, audio, texts, all of them only read.

What the modules of ``recipes.corpora`` share before `recipes.common.manifests` reads headers.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from focalcodec.audio import AUDIO_SUFFIXES
from recipes.common.files import existing_folder

logger = logging.getLogger(__name__)

SUBSETS = ("train", "valid", "test")


class Utterance(NamedTuple):
    """One audio file of a corpus before its header was read.

    ``keys`` are further keys of its row in the manifest. A `Path` among them is an audio file whose
    header is read as well; without it, or if ``target`` or ``target_2`` are not as long, the
    utterance is bad.
    """

    path: Path
    id: str
    speaker: str
    keys: Mapping[str, Any] = MappingProxyType({})


def corpus_folder(root: Path, name: str | Path, *, corpus: str, fix: str) -> Path:
    """Absolute path of a folder of a corpus, given below ``root`` or absolute.

    Parameters
    ----------
    root : of the corpus.
    name : relative to ``root``, or absolute.
    corpus : its name in the error message.
    fix : what else can be done than to unpack it there.

    Raises
    ------
    FileNotFoundError : if there is no such folder.
    """
    folder = (root / Path(name).expanduser()).resolve()
    if folder.is_dir():
        return folder
    raise FileNotFoundError(
        f"{corpus} folder '{name}' not found in {root}; unpack it there or {fix}"
        f"{_what_is_there(root, name)}"
    )


def list_splits(
    data_folder: str | Path,
    *,
    corpus: str,
    splits: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
    suffixes: Collection[str],
    describe: Callable[[Path], tuple[str, str]] | None = None,
    arguments: tuple[str, str, str] = ("train_splits", "valid_splits", "test_splits"),
) -> dict[str, list[Utterance] | None]:
    """List the audio files of named split folders.

    Parameters
    ----------
    data_folder : root of the corpus.
    corpus : its name in error messages.
    splits : folders below ``data_folder`` for train, valid and test; empty = not wanted.
    suffixes : of the files to take, lower case with the dot.
    describe : ``describe(path) -> (utterance id, speaker)``; by default of
        ``<split>/<speaker>/<chapter>/<utterance id>.<suffix>``.
    arguments : that the splits were given by, for error messages.

    Returns
    -------
    Utterances of each subset, sorted by path; None where no split is named.

    Raises
    ------
    FileNotFoundError : if the data folder or a split is missing.
    ValueError : if splits are not a list of plain folder names.
    """
    root = existing_folder(data_folder)
    check_splits(dict(zip(arguments, splits, strict=True)))
    describe = describe or functools.partial(_describe_chapter_layout, root=root)
    return {
        subset: [
            Utterance(path, *describe(path))
            for name in names
            for path in find_audio(_split_folder(root, name, corpus, argument), suffixes=suffixes)
        ]
        if names
        else None
        for subset, argument, names in zip(SUBSETS, arguments, splits, strict=True)
    }


def check_splits(splits: Mapping[str, Sequence[str] | None]) -> None:
    """Check the split folders that arguments name, by argument; warn of those in two of them.

    Raises
    ------
    ValueError : if they are not lists of plain folder names.
    """
    named = []
    for argument, names in splits.items():
        if isinstance(names, str):
            raise ValueError(
                f"{argument} must be a list of folders, got {names!r}; write [{names}]"
            )
        for name in names or ():
            if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
                raise ValueError(f"{argument} must be names of folders in the corpus, got {name!r}")
        named += set(names or ())
    for name in (name for name, count in Counter(named).items() if count > 1):
        logger.warning("split '%s' is in more than one of train, valid and test", name)


def find_audio(folder: Path, *, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """List the audio files below ``folder``, sorted.

    Hidden files and folders (``._a.wav``) are ignored, links are followed.
    """
    return sorted(_walk(folder, suffixes, frozenset()))


def describe_tree(path: Path, *, root: Path, speaker_level: int) -> tuple[str, str]:
    """Utterance id and speaker of a file in any tree.

    Parameters
    ----------
    path : of the file.
    root : of the tree.
    speaker_level : how many folders above the file the speaker's is (1 = the file's own).

    Returns
    -------
    Path below ``root`` without suffix, folders joined by ``--``, and the speaker's folder.

    Raises
    ------
    ValueError : if ``speaker_level`` is less than 1.
    """
    if speaker_level < 1:
        raise ValueError(f"speaker_level must be at least 1, got {speaker_level}")
    relative = path.relative_to(root)
    folders = (root.name, *relative.parts[:-1])
    return "--".join(relative.with_suffix("").parts), folders[max(0, len(folders) - speaker_level)]


def read_text(path: Path) -> str | None:
    """Content of a text file, white space collapsed; None without the file or if it is empty."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return " ".join(text.split()) or None


def read_text_beside(path: Path, *, suffix: str = ".normalized.txt") -> str | None:
    """Text of ``<utterance><suffix>`` beside an audio file, as `read_text` gives it."""
    return read_text(path.with_name(path.stem + suffix))


def read_chapter(folder: Path) -> dict[str, str]:
    """Text by utterance id, from LibriSpeech's ``*.trans.txt`` in a folder."""
    lines = (
        line
        for transcript in sorted(folder.glob("[!.]*.trans.txt"))
        for line in transcript.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def tree_text_reader() -> Callable[[Path], str | None]:
    """Reader of the text of an audio file in any tree; what it remembers lasts as long as itself.

    Looks for ``<utterance>.normalized.txt``, ``<utterance>.txt``, and for the utterance in a
    ``*.trans.txt``, all in the file's folder.
    """
    chapter = functools.cache(read_chapter)

    def read(path: Path) -> str | None:
        beside = read_text_beside(path) or read_text_beside(path, suffix=".txt")
        return beside or chapter(path.parent).get(path.stem)

    return read


def _describe_chapter_layout(path: Path, *, root: Path) -> tuple[str, str]:
    folders = path.relative_to(root).parts
    return path.stem, folders[max(0, len(folders) - 3)]


def _split_folder(root: Path, name: str, corpus: str, argument: str) -> Path:
    folder = root / name
    if folder.is_dir():
        return folder
    raise FileNotFoundError(
        f"{corpus} split '{name}' not found in {root}; unpack it there or remove it from "
        f"{argument}{_what_is_there(root, name)}"
    )


def _what_is_there(root: Path, name: str | Path) -> str:
    present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    deeper = [below for below in present if (root / below / name).is_dir()]
    hint = f"; it is in {root / deeper[0]}: give that as data_folder" if deeper else ""
    return f" (folders there: {', '.join(present[:20]) or 'none'}){hint}"


def _walk(folder: Path, suffixes: Collection[str], above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), suffixes, above | {real})
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in suffixes:
            yield Path(entry.path)
