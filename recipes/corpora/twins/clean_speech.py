"""Twins of corpora of clean speech: LibriSpeech, Multilingual LibriSpeech, VCTK."""

from pathlib import Path

from recipes.corpora.espeak import Espeak, draw_voices
from recipes.corpora.mls import LANGUAGES
from recipes.corpora.sentences import sentence, short_sentence
from recipes.corpora.twins.parts import Twin, Utterance, add_librispeech, spoken


def librispeech(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """LibriSpeech's test-clean and test-other, 16 kHz."""
    twin = Twin([], {})
    voices = draw_voices(2 * speakers, seed=seed)
    for i, (split, part) in enumerate((("test-clean", voices[::2]), ("test-other", voices[1::2]))):
        add_librispeech(twin, Path(split), engine, part, utterances, first=i * speakers, seed=seed)
    return twin


def librispeech460(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 10) -> Twin:
    """LibriSpeech's clean training splits, and one speaker each of dev-clean and test-clean.

    Sentences of few words, so that little is enough to learn them.
    """
    twin, first = Twin([], {}), 0
    voices = draw_voices(2 * speakers + 2, seed=seed)
    for split, number in (
        ("train-clean-100", speakers),
        ("train-clean-360", speakers),
        ("dev-clean", 1),
        ("test-clean", 1),
    ):
        part = voices[first : first + number]
        add_librispeech(
            twin,
            Path(split),
            engine,
            part,
            utterances,
            first=first,
            seed=seed,
            say=short_sentence,
        )
        first += number
    return twin


def mls(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 2) -> Twin:
    """MLS' seven languages, each by voices of that language, 16 kHz FLAC."""
    twin = Twin([], {})
    for i, (code, language) in enumerate(LANGUAGES.items()):
        test = Path(f"mls_{language}", "test")
        voices = draw_voices(speakers, seed=f"{seed} {code}", languages=[code])
        lines = []
        for j, voice in enumerate(voices):
            speaker, book = str(1000 * (i + 1) + j), str(100 + j)
            for k in range(utterances):
                name = f"{speaker}_{book}_{k:06d}"
                text = sentence(j * utterances + k, seed=seed, language=code)
                path = test / "audio" / speaker / book / f"{name}.flac"
                twin.recordings.append(
                    spoken(path, Utterance(engine, voice, text), sample_rate=16_000)
                )
                lines.append(f"{name}\t{text.lower().replace(',', '').rstrip('.')}\n")
        twin.texts[test / "transcripts.txt"] = "".join(lines)
    return twin


def vctk(engine: Espeak, *, seed: int, speakers: int = 3, utterances: int = 5) -> Twin:
    """VCTK 0.92, 48 kHz, both microphones; as there, sentences and one speaker's texts are lost."""
    twin = Twin([], {})
    for i, voice in enumerate(draw_voices(speakers, seed=seed)):
        speaker = "p315" if i == speakers - 1 > 1 else f"p{225 + i + (i >= 90)}"
        folder = Path("wav48_silence_trimmed", speaker)
        for j in range(utterances):
            if i == j == 1 and utterances > 2:
                continue
            name, text = f"{speaker}_{j + 1:03d}", sentence(j, seed=seed)
            for microphone in ("mic1", "mic2"):
                path = folder / f"{name}_{microphone}.flac"
                twin.recordings.append(
                    spoken(path, Utterance(engine, voice, text), sample_rate=48_000)
                )
            if speaker != "p315":
                twin.texts[Path("txt", speaker, f"{name}.txt")] = text + "\n"
    return twin
