"""Voice conversion pairs: the same sentence said by two speakers, and a voice to convert to.

For each sentence the speakers who say it stand in line, sorted by name; each is the source once,
and the next one is the target. The reference is the target speaker's longest utterance of another
of these sentences. So m speakers who all say n sentences give (m - 1) n pairs.

Protocol: FocalCodec's appendix, as its author's repository runs it
(github.com/lucadellalib/audiocodecs, downstream/datasets/vctk.py and downstream/test_vc.py).
"""

import logging
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.corpus_files import Utterance, describe_tree, find_audio, tree_text_reader
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, read_headers, write_manifests

logger = logging.getLogger(__name__)


class Sentence(NamedTuple):
    """One recording of a sentence that others may say as well.

    ``key`` tells sentences apart; recordings with equal keys are paired, unless both have a text
    and the texts differ.
    """

    path: Path
    name: str  # of the utterance
    speaker: str
    key: Hashable
    text: str | None


class Pairs(NamedTuple):
    """Utterances of a voice conversion test set, and why others are left out, by path."""

    utterances: list[Utterance]
    left_out: dict[str, str]


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    speaker_level: int = 1,
    language: str | None = None,
    on_bad_file: str = "skip",
    **filters: Any,
) -> PreparedCorpus:
    """Write the pairs of a tree of speakers' folders, found by the texts of their sentences.

    Texts are compared by their letters and digits alone. Of a speaker's recordings of one sentence
    the first by path is taken.

    Parameters
    ----------
    data_folder : root of the tree; texts as `recipes.common.corpus_files.tree_text_reader` finds
        them. What has no text is left out.
    save_folder : receives {train,valid,test}.json and bad_files.tsv; train and valid are empty.
    speaker_level : how many folders above a file its speaker's folder is (1 = its own).
    language : ISO 639-1 code; None = English.
    on_bad_file : "skip" or "raise".
    filters : min_duration_s, max_duration_s (of the source), max_test_utterances, seed, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder is missing.
    ValueError : if no two speakers say the same sentence, or nothing is left; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    read_text = tree_text_reader()
    sentences = []
    for path in find_audio(root):
        text = read_text(path)
        if text is not None and plain_text(text):
            name, speaker = describe_tree(path, root=root, speaker_level=speaker_level)
            sentences.append(Sentence(path, name, speaker, plain_text(text), text))
    return write_pairs(
        root, save_folder, sentences, on_bad_file=on_bad_file, language=language, **filters
    )


def write_pairs(
    root: Path,
    save_folder: str | Path,
    sentences: Sequence[Sentence],
    *,
    on_bad_file: str,
    language: str | None = None,
    **filters: Any,
) -> PreparedCorpus:
    """Read the headers of recordings, pair them, and write the manifest; as `prepare`."""
    headers, bad = read_headers([s.path for s in sentences], on_bad_file=on_bad_file)
    seconds = {path: num_samples / rate for path, (rate, num_samples) in headers.items()}
    pairs = pair([s for s in sentences if s.path in seconds], seconds=seconds, language=language)
    if not pairs.utterances:
        speakers = {sentence.speaker for sentence in sentences}
        raise ValueError(
            f"no pair of parallel sentences in {root}: {len(sentences)} recordings of "
            f"{len(speakers)} speakers, {len(bad)} bad; two speakers must say the same two "
            "sentences (is speaker_level right, and are there texts?)"
        )
    texts = {sentence.path: sentence.text for sentence in sentences}
    return write_manifests(
        root,
        save_folder,
        subsets={"test": pairs.utterances},
        read_text=texts.get,
        on_bad_file=on_bad_file,
        left_out=bad | pairs.left_out,
        **filters,
    )


def pair(
    sentences: Sequence[Sentence], *, seconds: Mapping[Path, float], language: str | None = None
) -> Pairs:
    """Pair consecutive speakers of each sentence and find the targets' references.

    Parameters
    ----------
    sentences : recordings that can be used.
    seconds : their durations, by path.
    language : of all, for the manifest.

    Returns
    -------
    Pairs : utterances with target, reference and reference_speaker, named
        ``<source's name>--<target speaker>``.
    """
    by_key: dict[Hashable, dict[str, Sentence]] = defaultdict(dict)
    for sentence in sorted(sentences, key=lambda sentence: sentence.path):
        by_key[sentence.key].setdefault(sentence.speaker, sentence)
    parallel = [by_speaker for by_speaker in by_key.values() if len(by_speaker) > 1]
    by_speaker: dict[str, list[Sentence]] = defaultdict(list)
    for speakers in parallel:
        for sentence in speakers.values():
            by_speaker[sentence.speaker].append(sentence)
    pairs = Pairs([], {})
    spoken = {} if language is None else {"language": language}
    for speakers in parallel:
        line = [speakers[name] for name in sorted(speakers)]
        for source, target in zip(line, line[1:], strict=False):
            others = [s for s in by_speaker[target.speaker] if s.key != target.key]
            if reason := _why_no_pair(source, target, others):
                pairs.left_out[str(source.path)] = reason
                continue
            reference = max(others, key=lambda s: seconds[s.path])
            keys = {
                **spoken,
                "target": target.path,
                "reference": reference.path,
                "reference_speaker": target.speaker,
            }
            utt_id = f"{source.name}--{target.speaker}"
            pairs.utterances.append(Utterance(source.path, utt_id, source.speaker, keys))
    if pairs.left_out:
        logger.warning("%d pairs of sentences are left out: see bad_files.tsv", len(pairs.left_out))
    return pairs


def plain_text(text: str) -> str:
    """Letters and digits of a text, in small letters, words parted by one space."""
    letters = (letter if letter.isalnum() else " " for letter in text.casefold() if letter != "'")
    return " ".join("".join(letters).split())


def _why_no_pair(source: Sentence, target: Sentence, others: Sequence[Sentence]) -> str | None:
    texts = [s.text for s in (source, target) if s.text is not None]
    if len({plain_text(text) for text in texts}) > 1:
        return (
            f"says {source.text!r}, but {target.path} says {target.text!r}: they are not parallel"
        )
    if not others:
        return f"{target.speaker} says no other sentence that could be the reference"
    return None
