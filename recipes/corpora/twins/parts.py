"""What every twin is made of: recordings, texts, speech in LibriSpeech's layout, noise."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from recipes.corpora.espeak import Espeak, Voice
from recipes.corpora.noises import NOISES
from recipes.corpora.sentences import sentence


class Recording(NamedTuple):
    """A file of a twin, and what makes its signal, (T,) or (T, channels)."""

    path: Path  # below the twin's folder
    sample_rate: int
    make: Callable[[], Tensor]


class Twin(NamedTuple):
    """Everything in a twin's folder; texts by path."""

    recordings: list[Recording]
    texts: dict[Path, str]


class Utterance(NamedTuple):
    """What one voice says; speaking it twice gives the same samples."""

    engine: Espeak
    voice: Voice
    text: str

    def sig(self, sample_rate: int) -> Tensor:
        """Speak (T,) at ``sample_rate``."""
        return self.engine.speak(self.text, voice=self.voice, sample_rate=sample_rate)


def spoken(path: Path, utterance: Utterance, *, sample_rate: int) -> Recording:
    """Make a recording of an utterance as it is."""
    return Recording(path, sample_rate, lambda: utterance.sig(sample_rate))


def noise_in_turn(
    engine: Espeak, number: int, *, num_samples: int, sample_rate: int, seed: int
) -> Tensor:
    """Make noise (T,), its kind by ``number``, the kinds in turn."""
    make = list(NOISES.values())[number % len(NOISES)]
    return make(num_samples=num_samples, sample_rate=sample_rate, seed=seed + number, engine=engine)


def add_librispeech(
    twin: Twin,
    split: Path,
    engine: Espeak,
    voices: list[Voice],
    utterances: int,
    *,
    first: int,
    seed: int,
    say: Callable[..., str] = sentence,
) -> dict[Path, Utterance]:
    """Add a split in LibriSpeech's layout.

    Parameters
    ----------
    twin : to be added to.
    split : its path in the twin.
    engine, voices : one speaker each.
    utterances : of each speaker.
    first : number of the first speaker, which names and sentences follow from.
    seed : of the sentences.
    say : ``say(number, seed=seed)`` gives a sentence.

    Returns
    -------
    What is said, by path.
    """
    said = {}
    for i, voice in enumerate(voices, first):
        speaker, chapter = str(2001 + i), str(30_001 + i)
        lines = []
        for j in range(utterances):
            name, text = f"{speaker}-{chapter}-{j:04d}", say(i * utterances + j, seed=seed)
            said[split / speaker / chapter / f"{name}.flac"] = Utterance(engine, voice, text)
            lines.append(f"{name} {text.upper().replace(',', '').rstrip('.')}\n")
        transcript = split / speaker / chapter / f"{speaker}-{chapter}.trans.txt"
        twin.texts[transcript] = "".join(lines)
    twin.recordings.extend(
        spoken(path, utterance, sample_rate=16_000) for path, utterance in said.items()
    )
    return said
