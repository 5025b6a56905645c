"""Twins of corpora of emotional speech, IEMOCAP and EmoDB: an emotion is a way of speaking."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from recipes.corpora.emodb import EMOTIONS
from recipes.corpora.espeak import Espeak, Voice, draw_voices
from recipes.corpora.iemocap import SESSIONS
from recipes.corpora.sentences import sentence, short_sentence
from recipes.corpora.twins.parts import Twin, Utterance, spoken


class Manner(NamedTuple):
    """What an emotion adds to a voice; every drawn voice stays within eSpeak's limits."""

    pitch: int = 0
    pitch_range: int = 0
    words_per_minute: int = 0
    volume: int = 0

    def of(self, voice: Voice) -> Voice:
        """Let a voice speak in this manner."""
        own = voice._asdict()
        return voice._replace(**{key: own[key] + more for key, more in self._asdict().items()})


MANNERS = {
    "anger": Manner(pitch=10, pitch_range=20, words_per_minute=50, volume=15),
    "boredom": Manner(pitch=-10, pitch_range=-25, words_per_minute=-40, volume=-10),
    "disgust": Manner(pitch=-15, pitch_range=10, words_per_minute=-20),
    "fear": Manner(pitch=25, pitch_range=-10, words_per_minute=60, volume=-10),
    "happiness": Manner(pitch=29, pitch_range=24, words_per_minute=20),
    "neutral": Manner(),
    "sadness": Manner(pitch=-20, pitch_range=-30, words_per_minute=-50, volume=-20),
}
_LABELS = {  # of IEMOCAP's turns in turn, and the manner
    "ang": "anger",
    "hap": "happiness",
    "sad": "sadness",
    "neu": "neutral",
    "exc": "happiness",
    "xxx": "neutral",
}
_SPEAKERS = ("03", "08", "11", "14", "10", "09", "12", "13", "15", "16")  # of EmoDB, man and woman
_SENTENCES = ("a01", "a02", "a04", "a05", "a07", "b01", "b02", "b03", "b09", "b10")  # of EmoDB


def iemocap(engine: Espeak, *, seed: int, utterances: int = 12) -> Twin:
    """IEMOCAP's five sessions of a man and a woman, each in two dialogues, 16 kHz.

    Of six turns of a speaker four have the emotions that are told apart, one is excited, and of one
    the judges agree on nothing. Sentences are of few words.
    """
    twin, dialogues = Twin([], {}), defaultdict(dict)
    for i, voice in enumerate(draw_voices(2 * len(SESSIONS), seed=seed)):
        session, sex = SESSIONS[i // 2], "MF"[i % 2]
        for j in range(utterances):
            dialogue = f"Ses{session:02d}{'FM'[j % 2]}_impro01"
            name = f"{dialogue}_{sex}{j // 2:03d}"
            label, emotion = list(_LABELS.items())[j % len(_LABELS)]
            text = short_sentence(i * utterances + j, seed=seed)
            path = Path(f"Session{session}", "sentences", "wav", dialogue, f"{name}.wav")
            utterance = Utterance(engine, MANNERS[emotion].of(voice), text)
            twin.recordings.append(spoken(path, utterance, sample_rate=16_000))
            dialogues[Path(f"Session{session}", "dialog"), dialogue][name] = (label, text)
    for (folder, dialogue), turns in dialogues.items():
        twin.texts.update(_dialogue_texts(folder, dialogue, turns))
    return twin


def emodb(engine: Espeak, *, seed: int, speakers: int = 10, utterances: int = 14) -> Twin:
    """EmoDB's wav folder, 16 kHz: each sentence in seven emotions, by German voices."""
    twin, letters = Twin([], {}), list(EMOTIONS)
    most = len(_SENTENCES) * len(letters)
    if speakers > len(_SPEAKERS) or utterances > most:
        raise ValueError(
            f"EmoDB has up to {len(_SPEAKERS)} speakers and {most} utterances of each, got "
            f"{speakers} and {utterances}"
        )
    voices = draw_voices(speakers, seed=seed, languages=["de"])
    for speaker, voice in zip(_SPEAKERS, voices, strict=False):
        for j in range(utterances):
            number, letter = j // len(letters), letters[j % len(letters)]
            path = Path("wav", f"{speaker}{_SENTENCES[number]}{letter}a.wav")
            text = sentence(number, seed=seed, language="de")
            utterance = Utterance(engine, MANNERS[EMOTIONS[letter]].of(voice), text)
            twin.recordings.append(spoken(path, utterance, sample_rate=16_000))
    return twin


def _dialogue_texts(
    folder: Path, dialogue: str, turns: dict[str, tuple[str, str]]
) -> dict[Path, str]:
    """Make a dialogue's evaluation and transcript: labels and texts by turn, times invented."""
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
    transcript = []
    for number, (name, (label, text)) in enumerate(turns.items()):
        start, end = 5.0 * number, 5.0 * number + 4
        evaluation.append(
            f"[{start:.4f} - {end:.4f}]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
            "A-E1:\tval 2; act 3; dom 2;\t()\n"
        )
        transcript.append(f"{name} [{start:08.4f}-{end:08.4f}]: {text}\n")
    return {
        folder / "EmoEvaluation" / f"{dialogue}.txt": "\n".join(evaluation),
        folder / "transcriptions" / f"{dialogue}.txt": "".join(transcript),
    }
