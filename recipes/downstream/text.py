"""Texts as numbers: SentencePiece units, characters or byte pairs, learnt from a training set."""

import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from recipes.common.files import write_bytes
from recipes.common.run_folder import read_description

UNITS = ("char", "bpe")
_MAX_SENTENCE_BYTES = 1 << 20  # SentencePiece leaves longer ones out without a word
_ENOUGH = 10_000  # more characters than any alphabet has


class Tokenizer:
    """Units of text; 0 is none of them: the blank of CTC, and padding.

    Parameters
    ----------
    model : SentencePiece model, as `train_tokenizer` gives it.

    Attributes
    ----------
    num_units : units are in [1, num_units); 1 stands for what the training texts do not have.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.num_units = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Units of a text; none of an empty one."""
        return self._processor.encode(text)

    def decode(self, units: list[int]) -> str:
        """Text of units; what is unknown becomes a sign that no text has."""
        return self._processor.decode(units)


def train_tokenizer(texts: Iterable[str], *, unit: str, vocabulary_size: int) -> bytes:
    """Learn units; the same texts give the same bytes.

    Parameters
    ----------
    texts : of the training set.
    unit : "char", or "bpe" for byte pairs.
    vocabulary_size : of byte pairs, the two special units included; characters are as many as there
        are.

    Returns
    -------
    SentencePiece model.

    Raises
    ------
    ValueError : if ``unit`` is neither, or the texts do not give so many units.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be {' or '.join(UNITS)}, got {unit!r}")
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError("no text to learn units from; the training set needs transcripts")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type=unit,
            vocab_size=vocabulary_size if unit == "bpe" else _ENOUGH,
            hard_vocab_limit=unit == "bpe",
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{len(texts)} texts do not give vocabulary_size {vocabulary_size} units ({reason}); "
            "lower it, or pass --unit char"
        ) from error
    return written.getvalue()


def load_tokenizer(
    folder: Path, texts: Iterable[str], *, unit: str, vocabulary_size: int, write: bool
) -> Tokenizer:
    """Tokenizer of a run, ``tokenizer.model`` in its folder; learnt anew until the run has begun.

    What a start that failed has left there may be of another configuration.

    Parameters
    ----------
    folder : of the run.
    texts, unit, vocabulary_size : as in `train_tokenizer`.
    write : whether this process keeps it.

    Raises
    ------
    ValueError : as `train_tokenizer`.
    """
    path = folder / "tokenizer.model"
    if path.is_file() and read_description(folder) is not None:
        return Tokenizer(path.read_bytes())
    model = train_tokenizer(texts, unit=unit, vocabulary_size=vocabulary_size)
    if write:
        write_bytes(path, model)
    return Tokenizer(model)


def plain_words(text: str) -> str:
    """Words of a text in small letters, of letters, their marks, digits and inner apostrophes."""
    composed = unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'")
    kept = "".join(
        letter if unicodedata.category(letter)[0] in "LMN" or letter == "'" else " "
        for letter in composed
    )
    return " ".join(word for part in kept.split() if (word := part.strip("'")))
