"""Twins of LibriMix: one speaker in noise, two speakers at once."""

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from recipes.common.mixing import Gains, extend_noise, mix
from recipes.corpora.espeak import Espeak, Voice, draw_voices
from recipes.corpora.sentences import short_sentence
from recipes.corpora.twins.parts import (
    Recording,
    Twin,
    Utterance,
    add_librispeech,
    noise_in_turn,
)


def libri1mix(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """LibriMix' storage folder: metadata, LibriSpeech, WHAM! noise, and the mixtures made of them.

    The noises have two channels; every second one is too short for its mixture.
    """
    twin = Twin([], {})
    voices = draw_voices(speakers, seed=seed)
    said = add_librispeech(
        twin, Path("LibriSpeech/test-clean"), engine, voices, utterances, first=0, seed=seed
    )
    rng, rows = random.Random(seed), []
    for number, (path, utterance) in enumerate(said.items()):
        second = list(said)[number - 1]
        name = f"{path.stem}_{second.stem}"
        seconds, gains = (2, 10)[number % 2], Gains(rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.6))

        @functools.cache  # three files are made of it
        def noise(number: int = number, seconds: int = seconds) -> Tensor:
            size = {"num_samples": seconds * 16_000, "sample_rate": 16_000}
            first = noise_in_turn(engine, number, seed=seed, **size)
            return torch.stack([first, noise_in_turn(engine, 0, seed=seed + number, **size)], 1)

        noise_path = Path("tt", f"{number:03d}_noise.wav")
        twin.recordings.append(Recording("wham_noise" / noise_path, 16_000, noise))
        sources = [path.relative_to("LibriSpeech"), second.relative_to("LibriSpeech")]
        rows.append(
            f"{name},{sources[0]},{gains.speech},{sources[1]},0.5,{noise_path},{gains.noise}\n"
        )
        twin.recordings.extend(_noisy_files(name, utterance, noise, gains))
    header = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain,"
    text = header + "noise_path,noise_gain\n" + "".join(rows)
    twin.texts[Path("LibriMix/metadata/Libri2Mix/libri2mix_test-clean.csv")] = text
    return twin


def libri2mix(engine: Espeak, *, seed: int, speakers: int = 4, utterances: int = 8) -> Twin:
    """Libri2Mix's train-100, and dev and test of two speakers each; sentences of few words.

    Each utterance is the first speaker's once, beside the other speakers in turn.
    """
    if speakers < 2:
        raise ValueError(f"libri2mix mixes speakers: at least 2 are needed, got {speakers}")
    twin, rng, first = Twin([], {}), random.Random(seed), 0
    voices = draw_voices(speakers + 4, seed=seed)
    for split, number in (("train-100", speakers), ("dev", 2), ("test", 2)):
        lines = _say_lines(
            engine, voices[first : first + number], utterances, first=first, seed=seed
        )
        for i, line in enumerate(lines):
            for j, (name, utterance) in enumerate(line.items()):
                other, second = list(lines[(i + 1 + j % (number - 1)) % number].items())[j]
                gains = (rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.45))
                path = Path("Libri2Mix", "wav16k", "min", split)
                twin.recordings.extend(
                    _separation_files(path, f"{name}_{other}.wav", (utterance, second), gains)
                )
        first += number
    return twin


def _say_lines(
    engine: Espeak, voices: list[Voice], utterances: int, *, first: int, seed: int
) -> list[dict[str, Utterance]]:
    """Let each speaker say something; by LibriSpeech's names."""
    return [
        {
            f"{2001 + i}-{30_001 + i}-{j:04d}": Utterance(
                engine, voice, short_sentence(i * utterances + j, seed=seed)
            )
            for j in range(utterances)
        }
        for i, voice in enumerate(voices, first)
    ]


def _separation_files(
    folder: Path, file: str, speakers: tuple[Utterance, Utterance], gains: tuple[float, float]
) -> Iterator[Recording]:
    """Files of one mixture of two speakers, as long as the shorter utterance."""

    @functools.cache  # three files are made of it
    def sources() -> tuple[Tensor, Tensor]:
        first, second = (
            utterance.sig(16_000) * gain for utterance, gain in zip(speakers, gains, strict=True)
        )
        length = min(len(first), len(second))
        return first[:length], second[:length]

    yield Recording(folder / "s1" / file, 16_000, lambda: sources()[0])
    yield Recording(folder / "s2" / file, 16_000, lambda: sources()[1])
    yield Recording(folder / "mix_clean" / file, 16_000, lambda: sum(sources()))


def _noisy_files(
    name: str, utterance: Utterance, noise: Callable[[], Tensor], gains: Gains
) -> Iterator[Recording]:
    """Files of one mixture in the folders that LibriMix' scripts write."""

    def parts() -> tuple[Tensor, Tensor]:
        speech = utterance.sig(16_000)
        return speech, extend_noise(noise()[: len(speech), 0], num_samples=len(speech))

    makers = {
        "s1": lambda: parts()[0] * gains.speech,
        "noise": lambda: parts()[1] * gains.noise,
        "mix_single": lambda: mix(*parts(), gains=gains),
    }
    for folder, make in makers.items():
        path = Path("Libri1Mix", "wav16k", "min", "test", folder, f"{name}.wav")
        yield Recording(path, 16_000, make)
