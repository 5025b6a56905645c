"""dWER and dCER: how far the transcript of decoded audio is from that of its target.

Whisper transcribes both, so that its own errors on the target count for nothing: the reference is
a transcript, not a text that somebody wrote. One utterance at a time, in windows of 30 s as Whisper
was trained, greedily, at temperature 0 and without another attempt.
"""

import functools
import json
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.common.score_models import (
    FoundModel,
    NeededFiles,
    Remembered,
    Source,
    find_model,
    hash_line,
    load_pretrained,
    loading,
)
from recipes.common.scoring import (
    SAMPLE_RATE,
    MissingWeightsError,
    ScoreError,
    load_package,
    package_versions,
    to_16k,
)

_SPELLINGS = "normalizer.json"
_FILES = NeededFiles(
    groups=(
        ("config.json",),
        ("generation_config.json",),
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.json"),
        (_SPELLINGS,),
    ),
    weights=("model.safetensors", "pytorch_model.bin"),
    others=(
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
    ),
)
_MULTILINGUAL_VOCABULARY = 51_865  # a smaller one has no tokens for languages
# Of generation_config.json: tokens' meanings, and what no transcript holds (music notes, ...).
_GENERATION_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "no_timestamps_token_id",
    "lang_to_id",
    "task_to_id",
    "is_multilingual",
    "suppress_tokens",
    "begin_suppress_tokens",
)
# Written without spaces between words: Whisper's paper makes every letter a word there.
_UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))


class TextErrors(NamedTuple):
    """Errors of a text as fractions of its reference, and that one's size, which weighs them."""

    dwer: float
    dcer: float
    words: int
    characters: int


def text_errors(ref_text: str, hyp_text: str) -> TextErrors:
    """Word and character error rates; above 1 where there are more edits than words.

    Parameters
    ----------
    ref_text, hyp_text : normalised; words are what spaces separate, which count as characters.

    Raises
    ------
    ScoreError : if the reference has no words.
    MissingPackageError : without ``jiwer``.
    """
    jiwer = load_package("jiwer")
    if not ref_text.split():
        raise ScoreError("the transcript of the target has no words")
    words = jiwer.process_words(ref_text, hyp_text)
    characters = jiwer.process_characters(ref_text, hyp_text)
    num_words = words.hits + words.substitutions + words.deletions
    num_characters = characters.hits + characters.substitutions + characters.deletions
    return TextErrors(words.wer, characters.cer, num_words, num_characters)


class Transcriber:
    """Whisper with everything written out that a transcript depends on.

    Parameters
    ----------
    model : ``WhisperForConditionalGeneration``.
    extractor : ``WhisperFeatureExtractor``; its window is the model's, 30 s.
    tokenizer : ``WhisperTokenizer``.
    spellings : of the English normaliser, British to American.
    device : where the model shall run.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        extractor: Any,
        tokenizer: Any,
        spellings: dict[str, str],
        device: str,
    ):
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        self.model = model.float().eval().requires_grad_(False).to(device)
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.device = device
        self._normalize_english = EnglishTextNormalizer(spellings)
        self._remembered = Remembered(self._transcribe)
        self.model.generation_config = self._greedy_generation_config()
        self.model.config.forced_decoder_ids = None  # of old checkpoints, instead of a language

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary has languages; otherwise the model knows English alone."""
        return self.model.config.vocab_size >= _MULTILINGUAL_VOCABULARY

    @torch.no_grad()
    def __call__(self, sig: Tensor, *, language: str = "en") -> str:
        """Transcribe and normalise; the same signal is transcribed once.

        Audio beyond one window is cut into pieces of equal length, and their transcripts are
        joined. Transformers' own way for long audio follows the timestamps that the model predicts,
        which would cut a codec's output elsewhere than its target.

        Parameters
        ----------
        sig : (T,) float32 at 16 kHz.
        language : ISO 639-1.

        Raises
        ------
        ScoreError : if the model does not know the language.
        """
        if language not in self._languages():
            raise ScoreError(f"the speech recognizer does not know the language {language!r}")
        return self._remembered(sig, language)

    def normalize(self, text: str, *, language: str) -> str:
        """Whisper's English normaliser; for other languages its basic one, accents kept."""
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        if language == "en":
            return self._normalize_english(text).strip()
        return BasicTextNormalizer(split_letters=language in _UNSPACED)(text).strip()

    def _transcribe(self, sig: Tensor, language: str) -> str:
        number = math.ceil(len(sig) / self.extractor.n_samples)
        pieces = sig.tensor_split(number)
        text = " ".join(self._transcribe_window(piece, language) for piece in pieces)
        return self.normalize(text, language=language)

    def _transcribe_window(self, sig: Tensor, language: str) -> str:
        features = self.extractor(
            sig.numpy(), sampling_rate=SAMPLE_RATE, padding="max_length", return_tensors="pt"
        ).input_features
        # A model of English alone has no tokens for them, and transformers refuses both.
        prompt = {"language": language, "task": "transcribe"} if self.is_multilingual else {}
        tokens = self.model.generate(
            features.to(self.device),
            **prompt,
            do_sample=False,
            num_beams=1,
            temperature=0.0,
            return_timestamps=False,
        )
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True)

    def _languages(self) -> set[str]:
        if not self.is_multilingual:
            return {"en"}
        return {token.strip("<|>") for token in self.model.generation_config.lang_to_id}

    def _greedy_generation_config(self) -> Any:
        """Keep of the checkpoint's own what greedy decoding needs, and nothing more."""
        from transformers import GenerationConfig

        given = self.model.generation_config
        kept = {key: getattr(given, key, None) for key in _GENERATION_KEYS}
        return GenerationConfig(
            **{key: value for key, value in kept.items() if value is not None},
            max_length=self.model.config.max_target_positions,
        )


def dwer(
    ref_sig: Tensor | np.ndarray,
    hyp_sig: Tensor | np.ndarray,
    *,
    sample_rate: int,
    transcriber: Transcriber,
    language: str = "en",
) -> TextErrors:
    """Errors of the decoded audio's transcript against that of its target.

    Parameters
    ----------
    ref_sig : (T,) target.
    hyp_sig : (T',) decoded; any length.
    sample_rate : Hz, of both.
    transcriber : see `load_transcriber`.
    language : what is spoken, ISO 639-1.

    Raises
    ------
    ScoreError : if audio is empty or not finite, the model does not know the language, or the
        target's transcript has no words.

    References
    ----------
    [1] Wang et al., 2021, arXiv:1911.07953 (differential word error rate); FocalCodec, section 4.1
        (Whisper-small).
    """
    texts = [
        transcriber(to_16k(sig, sample_rate=sample_rate), language=language)
        for sig in (ref_sig, hyp_sig)
    ]
    return text_errors(*texts)


def find_transcriber(source: Source) -> FoundModel:
    """Find a Whisper; errors as in `recipes.common.score_models.find_model`."""
    found = find_model(source, field="asr", files=_FILES)
    if not (found.folder / _SPELLINGS).is_file():  # transformers does not save it with a tokenizer
        raise MissingWeightsError(
            f"asr weights: {found.folder} has no {_SPELLINGS}; copy that of openai/whisper-small "
            "into it"
        )
    return found


@functools.lru_cache(maxsize=2)
def load_transcriber(source: Source, *, device: str) -> Transcriber:
    """Load a Whisper, once a process.

    Parameters
    ----------
    source : hub id or folder with config.json, generation_config.json, normalizer.json, weights,
        and the files of feature extractor and tokenizer.
    device : where it shall run.

    Raises
    ------
    FileNotFoundError : if a local folder does not exist.
    MissingWeightsError : if the weights cannot be had, or the folder holds no Whisper.
    """
    from transformers import (
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    found = find_transcriber(source)
    folder, local = found.folder, {"local_files_only": True}
    with loading(found, field="asr", kind="Whisper"):
        transcriber = Transcriber(
            model=load_pretrained(WhisperForConditionalGeneration, folder),
            extractor=WhisperFeatureExtractor.from_pretrained(folder, **local),
            tokenizer=WhisperTokenizer.from_pretrained(folder, **local),
            spellings=json.loads((folder / _SPELLINGS).read_text(encoding="utf-8")),
            device=device,
        )
    if transcriber.is_multilingual and not hasattr(
        transcriber.model.generation_config, "lang_to_id"
    ):
        raise MissingWeightsError(
            f"asr weights: generation_config.json of {folder} has no lang_to_id; put the one of "
            "the Whisper that it was made from in its place"
        )
    return transcriber


def describe_transcriber(source: Source) -> str:
    """One line of all that dWER and dCER depend on: weights, decoding, normaliser, packages."""
    found = find_transcriber(source)
    return (
        f"{found.describe()}; greedy, windows of 30 s; EnglishTextNormalizer for en "
        f"({hash_line(found.folder / _SPELLINGS)}), BasicTextNormalizer for others; "
        f"{package_versions('transformers', 'jiwer')}"
    )
