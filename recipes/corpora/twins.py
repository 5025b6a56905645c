"""Synthetic twins of the test sets: same folders, names and formats, spoken by eSpeak NG.

    python -m recipes.corpora.twins NAME FOLDER [--speakers N] [--utterances N] [--seed 0]

NAME is one of librispeech, mls, voicebank, libri1mix, vctk, noisy. A twin becomes the
``data_folder`` of its test set, whose preparation cannot tell it from the real one, so that a whole
evaluation runs offline in seconds. No speech of the real corpora is in it and scores on it say
nothing about a codec.
"""

import argparse
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from recipes.common.files import write_text
from recipes.common.mixing import Gains, extend_noise, gains_at_snr, mix
from recipes.corpora.espeak import Espeak, Voice, draw_voices
from recipes.corpora.generated import claim, write_sig
from recipes.corpora.mls import LANGUAGES
from recipes.corpora.noises import NOISES
from recipes.corpora.sentences import sentence

_HEADROOM = 0.3  # gain of speech to which noise is added in a file of its own: it must not clip


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


def generate(
    name: str,
    output_folder: str | Path,
    *,
    speakers: int | None = None,
    utterances: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a twin; an interrupted call can be repeated, files that are there are kept.

    The same arguments give the same bytes, whatever was there before.

    Parameters
    ----------
    name : a key of `TWINS`.
    output_folder : becomes the ``data_folder`` of the test set.
    speakers : of ``mls``, in each language.
    utterances : of each speaker. None for this or ``speakers``: a few, made in seconds.
    seed : of voices, sentences and noise.

    Returns
    -------
    ``output_folder`` as a path.

    Raises
    ------
    ModuleNotFoundError : without the espeakng-loader wheel.
    ValueError : if the name is not known, a number is less than 1, there are too few voices, or the
        folder holds a twin of other arguments.
    """
    if name not in TWINS:
        raise ValueError(f"there is no twin '{name}'; there are {', '.join(TWINS)}")
    sizes = {"speakers": speakers, "utterances": utterances}
    sizes = _defaults(name) | {key: size for key, size in sizes.items() if size is not None}
    if min(sizes.values()) < 1:
        raise ValueError(f"speakers and utterances must be at least 1, got {sizes}")
    folder = Path(output_folder)
    engine = Espeak()
    twin = TWINS[name](engine, seed=seed, **sizes)
    arguments = {"name": name, **sizes, "seed": seed, "espeak": engine.version}
    claim(folder, arguments, record="twin.json", what="a synthetic twin")
    for path, text in twin.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / path, text)
    for recording in tqdm(twin.recordings, desc=f"twin {name}", unit="file", disable=None):
        path = folder / recording.path
        if not path.exists():
            write_sig(path, recording.make(), sample_rate=recording.sample_rate)
    return folder


def librispeech(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """LibriSpeech's test-clean and test-other, 16 kHz."""
    twin = Twin([], {})
    voices = draw_voices(2 * speakers, seed=seed)
    for i, (split, part) in enumerate((("test-clean", voices[::2]), ("test-other", voices[1::2]))):
        _add_librispeech(twin, Path(split), engine, part, utterances, first=i * speakers, seed=seed)
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
                twin.recordings.append(_spoken(path, Utterance(engine, voice, text), 16_000))
                lines.append(f"{name}\t{text.lower().replace(',', '').rstrip('.')}\n")
        twin.texts[test / "transcripts.txt"] = "".join(lines)
    return twin


def voicebank(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 4) -> Twin:
    """VoiceBank-DEMAND's test set, 48 kHz, at its four ratios in turn."""
    twin, snrs_db = Twin([], {}), (2.5, 7.5, 12.5, 17.5)
    for i, voice in enumerate(draw_voices(speakers, seed=seed)):
        for j in range(utterances):
            number = i * utterances + j
            name, snr_db = f"p{232 + i}_{j + 1:03d}", snrs_db[number % len(snrs_db)]
            text, file = sentence(number, seed=seed), f"{name}.wav"
            utterance = Utterance(engine, voice, text)

            def noisy(
                utterance: Utterance = utterance, number: int = number, snr_db: float = snr_db
            ) -> Tensor:
                speech = _HEADROOM * utterance.sig(48_000)
                noise = _noise(engine, number, num_samples=len(speech), rate=48_000, seed=seed)
                return mix(speech, noise, gains=gains_at_snr(speech, noise, snr_db=snr_db))

            def clean(utterance: Utterance = utterance) -> Tensor:
                return _HEADROOM * utterance.sig(48_000)

            twin.recordings.append(Recording(Path("clean_testset_wav", file), 48_000, clean))
            twin.recordings.append(Recording(Path("noisy_testset_wav", file), 48_000, noisy))
            twin.texts[Path("testset_txt", f"{name}.txt")] = text + "\n"
    return twin


def libri1mix(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """LibriMix' storage folder: metadata, LibriSpeech, WHAM! noise, and the mixtures made of them.

    The noises have two channels; every second one is too short for its mixture.
    """
    twin = Twin([], {})
    voices = draw_voices(speakers, seed=seed)
    spoken = _add_librispeech(
        twin, Path("LibriSpeech/test-clean"), engine, voices, utterances, first=0, seed=seed
    )
    rng, rows = random.Random(seed), []
    for number, (path, utterance) in enumerate(spoken.items()):
        second = list(spoken)[number - 1]
        name = f"{path.stem}_{second.stem}"
        seconds, gains = (2, 10)[number % 2], Gains(rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.6))

        @functools.cache  # three files are made of it
        def noise(number: int = number, seconds: int = seconds) -> Tensor:
            size = {"num_samples": seconds * 16_000, "rate": 16_000}
            first = _noise(engine, number, seed=seed, **size)
            return torch.stack([first, _noise(engine, 0, seed=seed + number, **size)], 1)

        noise_path = Path("tt", f"{number:03d}_noise.wav")
        twin.recordings.append(Recording("wham_noise" / noise_path, 16_000, noise))
        sources = [path.relative_to("LibriSpeech"), second.relative_to("LibriSpeech")]
        rows.append(
            f"{name},{sources[0]},{gains.speech},{sources[1]},0.5,{noise_path},{gains.noise}\n"
        )
        twin.recordings.extend(_librimix_files(name, utterance, noise, gains))
    header = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain,"
    text = header + "noise_path,noise_gain\n" + "".join(rows)
    twin.texts[Path("LibriMix/metadata/Libri2Mix/libri2mix_test-clean.csv")] = text
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
                twin.recordings.append(_spoken(path, Utterance(engine, voice, text), 48_000))
            if speaker != "p315":
                twin.texts[Path("txt", speaker, f"{name}.txt")] = text + "\n"
    return twin


def noisy(engine: Espeak, *, seed: int, speakers: int = 2, utterances: int = 3) -> Twin:
    """Clean speech with texts beside it, and a folder of noise, 16 kHz."""
    twin = Twin([], {})
    for i, voice in enumerate(draw_voices(speakers, seed=seed)):
        for j in range(utterances):
            text = sentence(i * utterances + j, seed=seed)
            path = Path("speech", str(1001 + i), f"{1001 + i}_{j:04d}.flac")
            twin.recordings.append(_spoken(path, Utterance(engine, voice, text), 16_000))
            twin.texts[path.with_suffix(".txt")] = text + "\n"
    for number, kind in enumerate(NOISES):
        path = Path("noise", kind, f"{kind}_0.flac")

        def make(number: int = number) -> Tensor:
            return _noise(engine, number, num_samples=6 * 16_000, rate=16_000, seed=seed)

        twin.recordings.append(Recording(path, 16_000, make))
    return twin


TWINS: dict[str, Callable[..., Twin]] = {
    "librispeech": librispeech,
    "mls": mls,
    "voicebank": voicebank,
    "libri1mix": libri1mix,
    "vctk": vctk,
    "noisy": noisy,
}


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m recipes.corpora.twins NAME FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpora.twins",
        description="Synthesise a small twin of a test set, in its layout, with eSpeak NG.",
    )
    parser.add_argument("name", choices=list(TWINS))
    parser.add_argument("output_folder", help="becomes the data_folder of the test set")
    parser.add_argument("--speakers", type=int, help="of mls: in each language")
    parser.add_argument("--utterances", type=int, help="of each speaker")
    parser.add_argument("--seed", type=int, default=0, help="of voices, sentences and noise")
    generate(**vars(parser.parse_args(argv)))


def _defaults(name: str) -> dict[str, int]:
    parameters = inspect.signature(TWINS[name]).parameters
    return {key: parameters[key].default for key in ("speakers", "utterances")}


def _spoken(path: Path, utterance: Utterance, sample_rate: int) -> Recording:
    return Recording(path, sample_rate, lambda: utterance.sig(sample_rate))


def _noise(engine: Espeak, number: int, *, num_samples: int, rate: int, seed: int) -> Tensor:
    """Noise (T,) of the kinds in turn."""
    make = list(NOISES.values())[number % len(NOISES)]
    return make(num_samples=num_samples, sample_rate=rate, seed=seed + number, engine=engine)


def _add_librispeech(
    twin: Twin,
    split: Path,
    engine: Espeak,
    voices: list[Voice],
    utterances: int,
    *,
    first: int,
    seed: int,
) -> dict[Path, Utterance]:
    """Add a split in LibriSpeech's layout; what is said, by path."""
    spoken = {}
    for i, voice in enumerate(voices, first):
        speaker, chapter = str(2001 + i), str(30_001 + i)
        lines = []
        for j in range(utterances):
            name, text = f"{speaker}-{chapter}-{j:04d}", sentence(i * utterances + j, seed=seed)
            spoken[split / speaker / chapter / f"{name}.flac"] = Utterance(engine, voice, text)
            lines.append(f"{name} {text.upper().replace(',', '').rstrip('.')}\n")
        transcript = split / speaker / chapter / f"{speaker}-{chapter}.trans.txt"
        twin.texts[transcript] = "".join(lines)
    twin.recordings.extend(_spoken(path, utterance, 16_000) for path, utterance in spoken.items())
    return spoken


def _librimix_files(
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


if __name__ == "__main__":
    main()
