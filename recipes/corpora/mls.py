"""Multilingual LibriSpeech, test set: some utterances of each of seven languages, drawn once.

Source: openslr.org/94 (Pratap et al., 2020, arXiv:2012.03411), 16 kHz. An archive unpacks to
``mls_<language>`` (FLAC) or ``mls_<language>_opus``: ``test/audio/<speaker>/<book>/<id>.flac`` with
``test/transcripts.txt``, a line ``<id> TAB <text>`` for each ``<id>`` =
``<speaker>_<book>_<number>``.

The FocalCodec paper draws 100 utterances of each language and does not say which. What is drawn
here is written to ``mls_utterances.txt`` of the run folder, ``<language> TAB <id>`` a line; given
back as ``utterance_list`` it makes the same set on another machine, from FLAC or from Opus.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import Utterance, corpus_folder, find_audio
from recipes.common.files import existing_folder, write_text
from recipes.common.manifests import PreparedCorpus, write_manifests

logger = logging.getLogger(__name__)

LANGUAGES = {
    "nl": "dutch",
    "fr": "french",
    "de": "german",
    "it": "italian",
    "pl": "polish",
    "pt": "portuguese",
    "es": "spanish",
}
LIST_NAME = "mls_utterances.txt"


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    languages: Sequence[str] = tuple(LANGUAGES),
    utterances_per_language: int = 100,
    utterance_list: str | Path | None = None,
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of the test set and the list of its utterances.

    Utterances are drawn before any filter; a larger number draws a superset. Ids in the manifest
    are ``<language>_<id>``.

    Parameters
    ----------
    data_folder : folder that holds ``mls_dutch``, ``mls_french`` and so on.
    save_folder : receives {train,valid,test}.json (train and valid are empty), bad_files.tsv and
        mls_utterances.txt.
    languages : ISO 639-1 codes; one whose code is not in `LANGUAGES` is not known.
    utterances_per_language : to draw; of a language that has fewer all are taken, with a warning.
    utterance_list : an ``mls_utterances.txt``: exactly these utterances, as far as they are of
        ``languages``; nothing is drawn.
    seed : of the draws.
    filters : min_duration_s, max_duration_s, max_test_utterances, on_bad_file, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if a language's folder or the list is missing.
    ValueError : if an argument is wrong, an utterance of the list is not there, or nothing is left;
        BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    _check(languages, utterances_per_language)
    listed = None if utterance_list is None else read_list(utterance_list)
    drawn, texts = [], {}
    for language in languages:
        folder = _test_folder(root, language)
        paths = _audio_by_id(folder)
        if listed is None:
            ids = _draw(paths, utterances_per_language, language=language, seed=seed)
        else:
            ids = _from_list(listed.get(language, []), paths, folder=folder)
        transcripts = _read_transcripts(folder / "transcripts.txt")
        for utt_id in ids:
            path = paths[utt_id]
            drawn.append(
                Utterance(
                    path, f"{language}_{utt_id}", utt_id.split("_")[0], {"language": language}
                )
            )
            texts[path] = transcripts.get(utt_id)
    prepared = write_manifests(
        root, save_folder, subsets={"test": drawn}, read_text=texts.get, seed=seed, **filters
    )
    lines = [f"{u.keys['language']}\t{u.path.stem}\n" for u in drawn]
    write_text(Path(save_folder).expanduser() / LIST_NAME, "".join(lines))
    return prepared


def read_list(path: str | Path) -> dict[str, list[str]]:
    """Ids by language from an ``mls_utterances.txt``.

    Raises
    ------
    FileNotFoundError : without the file.
    ValueError : if a line is no language and id.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"utterance_list {path} not found; give the {LIST_NAME} of an earlier run"
        )
    ids: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        language, tab, utt_id = line.partition("\t")
        if not tab or language not in LANGUAGES or not utt_id:
            raise ValueError(
                f"{file}, line {number}: {line!r} is not '<language> TAB <id>' with a language of "
                f"{', '.join(LANGUAGES)}"
            )
        ids[language].append(utt_id)
    return dict(ids)


def _check(languages: Sequence[str], utterances_per_language: int) -> None:
    unknown = [language for language in languages if language not in LANGUAGES]
    if isinstance(languages, str) or unknown or not languages:
        raise ValueError(
            f"languages must be a list of some of {', '.join(LANGUAGES)}, got {languages!r}"
        )
    if utterances_per_language < 1:
        raise ValueError(f"utterances_per_language must be at least 1: {utterances_per_language}")


def _test_folder(root: Path, language: str) -> Path:
    name = f"mls_{LANGUAGES[language]}"
    opus = root / f"{name}_opus" / "test"
    if opus.is_dir() and not (root / name / "test").is_dir():
        return opus
    return corpus_folder(
        root, f"{name}/test", corpus="MLS", fix=f"remove {language} from languages"
    )


def _audio_by_id(folder: Path) -> dict[str, Path]:
    """Files by id, sorted by id; of an utterance in both formats, FLAC."""
    paths = find_audio(folder / "audio", suffixes=(".flac", ".opus", ".wav"))
    by_id: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.suffix != ".flac"):
        by_id.setdefault(path.stem, path)
    return dict(sorted(by_id.items()))


def _draw(paths: Mapping[str, Path], number: int, *, language: str, seed: int) -> list[str]:
    ids = list(paths)
    if len(ids) < number:
        logger.warning("MLS has %d of %d utterances wanted in '%s'", len(ids), number, language)
    random.Random(f"{seed} {language}").shuffle(ids)
    return sorted(ids[:number])


def _from_list(ids: Sequence[str], paths: Mapping[str, Path], *, folder: Path) -> list[str]:
    if missing := [utt_id for utt_id in ids if utt_id not in paths]:
        raise ValueError(
            f"{len(missing)} utterances of utterance_list are not in {folder} "
            f"({', '.join(missing[:3])}); complete the corpus, or use a list made from it"
        )
    return sorted(ids)


def _read_transcripts(path: Path) -> dict[str, str]:
    """Text by id; empty without the file."""
    if not path.is_file():
        logger.warning("%s not found: its utterances have no text", path)
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split("\t", 1) for line in lines)
    return {pair[0]: " ".join(pair[1].split()) for pair in pairs if len(pair) == 2}
