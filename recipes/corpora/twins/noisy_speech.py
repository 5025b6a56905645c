"""Twins of noisy speech: VoiceBank-DEMAND, and speech beside noise that it is mixed with."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from recipes.common.mixing import gains_at_snr, mix
from recipes.corpora.espeak import Espeak, Voice, draw_voices
from recipes.corpora.noises import NOISES
from recipes.corpora.sentences import sentence, short_sentence
from recipes.corpora.twins.parts import Recording, Twin, Utterance, noise_in_turn, spoken

_HEADROOM = 0.3  # gain of speech to which noise is added in a file of its own: it must not clip
_TEST_SNRS_DB = (2.5, 7.5, 12.5, 17.5)
_TRAIN_SNRS_DB = (0.0, 5.0, 10.0, 15.0)


def voicebank(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 4) -> Twin:
    """VoiceBank-DEMAND's test set, 48 kHz, at its four ratios in turn."""
    twin = Twin([], {})
    voices = {f"p{232 + i}": voice for i, voice in enumerate(draw_voices(speakers, seed=seed))}
    _add_voicebank(twin, "testset", engine, voices, utterances, snrs_db=_TEST_SNRS_DB, seed=seed)
    return twin


def voicebank_enhancement(
    engine: Espeak, *, seed: int, speakers: int = 4, utterances: int = 8
) -> Twin:
    """VoiceBank-DEMAND's 28 training speakers and its test set, in sentences of few words.

    ``speakers`` are trained on; beside them stand the two for validation, and two for the test,
    each with half as many utterances.
    """
    twin = Twin([], {})
    trained = [f"p{227 + i + (i >= 5)}" for i in range(speakers)]  # p232 is in the test set
    names = [*trained, "p226", "p287", "p232", "p257"]
    drawn = dict(zip(names, draw_voices(len(names), seed=seed), strict=True))
    half, first = max(1, utterances // 2), 0
    for part, members, number, snrs_db in (
        ("trainset_28spk", trained, utterances, _TRAIN_SNRS_DB),
        ("trainset_28spk", ["p226", "p287"], half, _TRAIN_SNRS_DB),
        ("testset", ["p232", "p257"], half, _TEST_SNRS_DB),
    ):
        _add_voicebank(
            twin,
            part,
            engine,
            {name: drawn[name] for name in members},
            number,
            snrs_db=snrs_db,
            seed=seed,
            first=first,
            say=short_sentence,
        )
        first += len(members) * number
    return twin


def noisy(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """Clean speech with texts beside it, and a folder of noise, 16 kHz."""
    twin = Twin([], {})
    for i, voice in enumerate(draw_voices(speakers, seed=seed)):
        for j in range(utterances):
            text = sentence(i * utterances + j, seed=seed)
            path = Path("speech", str(1001 + i), f"{1001 + i}_{j:04d}.flac")
            twin.recordings.append(spoken(path, Utterance(engine, voice, text), sample_rate=16_000))
            twin.texts[path.with_suffix(".txt")] = text + "\n"
    for number, kind in enumerate(NOISES):
        path = Path("noise", kind, f"{kind}_0.flac")

        def make(number: int = number) -> Tensor:
            return noise_in_turn(
                engine, number, num_samples=6 * 16_000, sample_rate=16_000, seed=seed
            )

        twin.recordings.append(Recording(path, 16_000, make))
    return twin


def _add_voicebank(
    twin: Twin,
    part: str,
    engine: Espeak,
    voices: Mapping[str, Voice],
    utterances: int,
    *,
    snrs_db: tuple[float, ...],
    seed: int,
    first: int = 0,
    say: Callable[..., str] = sentence,
) -> None:
    """Add speakers by name to ``testset`` or ``trainset_28spk``, from the ``first`` sentence on."""
    for i, (speaker, voice) in enumerate(voices.items()):
        for j in range(utterances):
            number = first + i * utterances + j
            name, snr_db = f"{speaker}_{j + 1:03d}", snrs_db[number % len(snrs_db)]
            text, file = say(number, seed=seed), f"{name}.wav"
            utterance = Utterance(engine, voice, text)

            def noisy(
                utterance: Utterance = utterance, number: int = number, snr_db: float = snr_db
            ) -> Tensor:
                speech = _HEADROOM * utterance.sig(48_000)
                noise = noise_in_turn(
                    engine, number, num_samples=len(speech), sample_rate=48_000, seed=seed
                )
                return mix(speech, noise, gains=gains_at_snr(speech, noise, snr_db=snr_db))

            def clean(utterance: Utterance = utterance) -> Tensor:
                return _HEADROOM * utterance.sig(48_000)

            twin.recordings.append(Recording(Path(f"clean_{part}_wav", file), 48_000, clean))
            twin.recordings.append(Recording(Path(f"noisy_{part}_wav", file), 48_000, noisy))
            twin.texts[Path(f"{part}_txt", f"{name}.txt")] = text + "\n"
